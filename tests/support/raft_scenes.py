"""Where tests of the consensus core begin, and what they look at."""

from collections.abc import Callable
from typing import TypeVar

from quorate_raft.core.messages import Entry, HardState
from support.raft_cluster import ELECTION_TICKS, Cluster

MessageT = TypeVar("MessageT")

ROUNDS_MAX = 100


def elected(names: str = "abc", **limits: int) -> Cluster:
    """A cluster that the first of its members leads, in term 1."""
    cluster = Cluster(names, **limits)
    cluster.elect(names[0])
    return cluster


def with_logs(names: str, **terms: list[int]) -> Cluster:
    """A cluster whose members start with these terms in their logs, as the paper's figures draw them."""
    cluster = Cluster(names)
    for name, log in terms.items():
        member = cluster.members[name]
        member.entries = [Entry(index, term, data=b"%d" % term) for index, term in enumerate(log, start=1)]
        member.restart()
    return cluster


def in_term(cluster: Cluster, term: int, *names: str) -> None:
    """Let members have been in this term before they restarted; each must be in it or below."""
    for name in names or cluster.members:
        member = cluster.members[name]
        member.hard_state = HardState(term, commit=member.hard_state.commit)
        member.restart()


def taken(cluster: Cluster, kind: type[MessageT], *, to: str = "", sender: str = "") -> list[MessageT]:
    """Take the messages of one kind off the wire."""
    return [message for message in cluster.take(kind, to=to, sender=sender) if isinstance(message, kind)]


def time_out(cluster: Cluster, name: str) -> None:
    """Let this member's election timeout pass at its next tick."""
    cluster[name]._state.election_timeout_ticks = 1
    cluster.tick(name)


def forget_leader(cluster: Cluster, *names: str) -> None:
    """So much time passes for these members that they would help another to lead; what they send meanwhile is lost."""
    cluster.tick(*names, times=ELECTION_TICKS)
    cluster.take()


def deliver_until(cluster: Cluster, is_so: Callable[[], object]) -> None:
    """Deliver what is on the wire, and what comes of it, round by round, until something is so."""
    for _ in range(ROUNDS_MAX):
        if is_so():
            return
        assert cluster.wire, f"nothing moves any more: {cluster.describe()}"
        cluster.deliver(cluster.take())
    raise AssertionError(f"it never comes to be: {cluster.describe()}")


def terms_of(cluster: Cluster, name: str) -> list[int]:
    return [entry.term for entry in cluster.members[name].log_entries()]
