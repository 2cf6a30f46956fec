"""Is anybody there? One TCP connection to a lapsed instance, which decides nothing by itself.

Only a refusal says that the instance's process is gone: its machine answers, and nobody listens. Whatever else goes
wrong, such as silence, no route, or a name that does not resolve, may be the network between, and is undecided.
"""

from enum import StrEnum

from quorate_registry.checks.dialing import NotConnected, connect
from quorate_registry.checks.outcome import Undecided
from quorate_registry.checks.resolver import Resolver

PROBE_TIMEOUT_S = 1.0


class Finding(StrEnum):
    CONNECTED = "connected"
    REFUSED = "refused"
    UNDECIDED = "undecided"


async def probe(resolver: Resolver, host: str, port: int, timeout_s: float = PROBE_TIMEOUT_S) -> Finding:
    """Nothing is sent. Never raises for what the network does, or for what this node is short of."""
    try:
        (await connect(resolver, host, port, timeout_s)).close()
    except NotConnected as error:
        return Finding.REFUSED if error.is_refused else Finding.UNDECIDED
    except Undecided:
        return Finding.UNDECIDED
    return Finding.CONNECTED
