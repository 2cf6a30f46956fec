"""Nodes that are killed and stopped: what clients see stays linearizable, and leases end neither early nor never."""

from collections.abc import Callable

from support.fault_clients import Caller, Outcome
from support.fault_cluster import FaultCluster
from support.node_processes import until

Show = Callable[[str], None]

WRITES = 30
REFUSALS = 3
KEPT_TTL_S = 5
LEFT_TTL_S = 2


def test_kill_9_of_the_leader_a_follower_and_all_at_once(cluster: FaultCluster, fault_round: int, show: Show) -> None:
    """Nothing that was acknowledged is lost, and nothing happens twice."""
    with cluster.load(f"kill-{fault_round}") as load:
        leader = cluster.wait_whole()
        leader.kill()
        failover_s = load.wait_for_writes(1)
        load.wait_for_writes(WRITES)
        second = cluster.leader_of(cluster.others(leader))
        leader.restart()
        second.kill()  # while the first one still catches up
        load.wait_for_writes(WRITES)
        second.restart()
        follower = cluster.others(cluster.wait_whole())[0]
        follower.kill()
        load.wait_for_writes(WRITES)
        follower.restart()
        load.wait_for_writes(WRITES)
        for node in cluster.nodes:
            node.kill()
        cluster.start()
        load.wait_for_writes(WRITES)
        cluster.wait_whole()
    show(f"\n{load.judge()}; writes went on {failover_s:.2f} s after the leader was killed")


def test_a_stopped_leader_that_wakes_up_serves_nothing_old(cluster: FaultCluster, fault_round: int, show: Show) -> None:
    """It is stopped until another leads and has taken writes; what it was asked meanwhile it answers then."""
    with cluster.load(f"stop-{fault_round}") as load, cluster.instance("kept", KEPT_TTL_S) as kept:
        leader = cluster.wait_whole()
        others = cluster.others(leader)
        cluster.pause(leader)
        cluster.leader_of(others, other_than=[leader.name])
        load.wait_for_writes(WRITES, [node.name for node in others])
        cluster.resume(leader)
        follower = cluster.others(cluster.wait_whole())[0]
        cluster.pause(follower)
        load.wait_for_writes(WRITES, [node.name for node in cluster.others(follower)])
        cluster.resume(follower)
        load.wait_for_writes(WRITES)
        cluster.wait_whole()
    kept.require_no_early_end()
    show(f"\n{load.judge()}")


def test_two_stopped_nodes_stop_the_third_and_all_go_on_together(
    cluster: FaultCluster, fault_round: int, show: Show
) -> None:
    """A leader without a majority stops to lead, and says so."""
    with cluster.load(f"stop-two-{fault_round}") as load:
        leader = cluster.wait_whole()
        others = cluster.others(leader)
        cluster.pause(*others)
        until("the leader steps down", lambda: cluster.view(leader)["leader"] == "")
        before = load.writes()
        assert cluster.http.get(leader.url + "/readyz").status_code == 503
        lone = Caller(load, -1, cluster.http, leader.name)
        refusals = [lone.put(load.keys[0], f"lone {number}".encode()) for number in range(REFUSALS)]
        assert refusals == [Outcome.NOT_DONE] * REFUSALS
        assert load.writes() == before, "a write was acknowledged without a majority"
        cluster.resume(*others)
        load.wait_for_writes(WRITES)
        cluster.wait_whole()
    show(f"\n{load.judge()}")


def test_leases_outlive_leaders_and_end_in_time(cluster: FaultCluster, fault_round: int, show: Show) -> None:
    """One instance is kept alive while three leaders go: killed, stopped, and handing over. Another one's heartbeats
    cease while the leader is killed: it ends, not before its time to live, and not long after it."""
    with cluster.instance("kept", KEPT_TTL_S) as kept, cluster.instance("left", LEFT_TTL_S) as left:
        leader = cluster.wait_whole()
        leader.kill()
        ended = left.let_go()
        leader.restart()
        second = cluster.wait_whole()
        cluster.pause(second)
        cluster.leader_of(cluster.others(second), other_than=[second.name])
        cluster.resume(second)
        third = cluster.wait_whole()
        cluster.hand_over(cluster.others(third)[0])
        with cluster.instance("left-in-peace", LEFT_TTL_S) as in_peace:
            ended_in_peace = in_peace.let_go()
    kept.require_kept()
    left.require_no_early_end()
    show(
        f"\nkept by {kept.renewals} renewals, at most {kept.longest_gap_s:.2f} s apart; those of {LEFT_TTL_S} s ended "
        f"{ended.after_s:.2f} s after their last renewal with a leader killed meanwhile, "
        f"{ended_in_peace.after_s:.2f} s without"
    )
