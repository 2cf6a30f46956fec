"""What the simulation looks at inside of members that run unchanged. All of it is read, and nothing is changed."""

from quorate_raft.core.node import RaftNode
from quorate_raft.runtime.driver import RaftDriver


def node_of(driver: RaftDriver) -> RaftNode | None:
    """The core that `driver` drives; None while it is not started, and after it was closed."""
    started = driver._started  # noqa: SLF001 - who judges consensus must see it, and nobody else should
    return None if started is None else started.node
