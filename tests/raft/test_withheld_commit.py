"""A leader that withholds its commit index until there is something else to send, or somebody wants to know it."""

from quorate_raft.core.membership import RemoveMember
from quorate_raft.core.messages import AppendRequest
from support.raft_cluster import Cluster
from support.raft_scenes import elected, taken


def withholding(names: str = "abc") -> Cluster:
    cluster = elected(names, withholds_commit=True)
    cluster["a"].tell_commit()
    cluster.settle()
    return cluster


def commit_indexes(cluster: Cluster) -> list[int]:
    return [cluster[name].log.commit_index for name in "abc"]


def test_a_commit_alone_is_told_to_nobody_until_it_is_asked_for() -> None:
    cluster = withholding()
    index, _ = cluster.propose("a")
    cluster.settle()
    assert commit_indexes(cluster) == [index, index - 1, index - 1]
    assert cluster["a"].withholds_commit
    cluster["a"].tell_commit()
    cluster.process("a")
    assert [(request.entries, request.commit) for request in taken(cluster, AppendRequest)] == [((), index)] * 2
    assert not cluster["a"].withholds_commit


def test_the_next_entries_carry_it() -> None:
    cluster = withholding()
    index, _ = cluster.propose("a")
    cluster.settle()
    cluster.propose("a")
    cluster.process("a")
    requests = taken(cluster, AppendRequest)
    assert [(len(request.entries), request.commit) for request in requests] == [(1, index)] * 2
    assert not cluster["a"].withholds_commit


def test_a_heartbeat_carries_it() -> None:
    cluster = withholding()
    index, _ = cluster.propose("a")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    assert commit_indexes(cluster) == [index] * 3


def test_a_follower_that_reads_is_told_with_the_answer() -> None:
    """Or it could not answer its reader before the next heartbeat."""
    cluster = withholding()
    index, _ = cluster.propose("a")
    cluster.settle()
    context = cluster.read("b")
    cluster.settle()
    assert cluster.members["b"].reads[context] == index
    assert commit_indexes(cluster)[1] == index


def test_a_membership_is_told_at_once() -> None:
    """A member that is removed has to learn it before the others hang up."""
    cluster = withholding()
    index, _ = cluster.change("a", RemoveMember("c"))
    cluster.settle()
    assert commit_indexes(cluster)[:2] == [index] * 2


def test_telling_is_for_leaders_and_does_no_harm_elsewhere() -> None:
    cluster = withholding()
    cluster["b"].tell_commit()
    cluster.process("b")
    assert not taken(cluster, AppendRequest)
    assert not cluster["b"].withholds_commit


def test_a_new_leader_forgets_what_the_old_one_wanted_told() -> None:
    cluster = withholding()
    cluster["a"].transfer("b")
    cluster["a"].tell_commit()
    cluster.settle()
    assert cluster.leader == "b"
    assert not cluster["a"].has_ready()
