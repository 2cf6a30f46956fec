"""Services as real processes that die, stop, block and leave while nodes do the same: what discovery says of them.

An observer compares every node's list and an SDK client's copy with the truth each 50 ms (`support.fault_discovery`).
What is promised: nobody who answers is ever missing for long, and nobody who is dead is told of for longer than its
time to live, the lateness of a lease's end, and the probes of a protected service. The figures are shown.

In a long run (`FAULT_ROUNDS` is set) leaders change every five seconds and all nodes are away for a minute;
`FAULT_AWAY_S` and `FAULT_LEADER_INTERVAL_S` say otherwise.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fault_cluster import FaultCluster
from support.fault_discovery import DEAD, MISSING, Observer
from support.fault_services import GUNICORN, ServiceProcess, service_processes
from support.registered_service import SERVICE

pytestmark = pytest.mark.timeout(300)

Show = Callable[[str], None]

IS_LONG = "FAULT_ROUNDS" in os.environ
AWAY_S = float(os.environ.get("FAULT_AWAY_S", "60" if IS_LONG else "4"))
LEADER_INTERVAL_S = float(os.environ.get("FAULT_LEADER_INTERVAL_S", "5" if IS_LONG else "1.5"))
LEADER_CHANGES = 6
CHANGES_AFTER_DEATH = 2

TTL_S = 2
LEASE_LATE_S_MAX = 1.5
"""From the end of a lease's time to its keys being gone: the leader looks twice a second, and it is a write."""
PROBES_S_MAX = 0.5
"""Of a protected service: one probe at once, one 0.2 s later, each refused at once where nobody listens."""
NEW_LEADER_S_MAX = 3.0
"""An election, and the grace that a new leader gives all leases."""
MACHINE_S_MAX = 2.0
"""Processes of these tests wait for each other on few cores."""
DEAD_S_MAX = TTL_S + LEASE_LATE_S_MAX + PROBES_S_MAX + MACHINE_S_MAX
RETURN_S_MAX = 1.0 + MACHINE_S_MAX
"""From its first answer to being told of: it registers as soon as it listens, or as its heartbeat is not known."""
BLOCKED_S = 3.0 * TTL_S
ENDED = (0, -signal.SIGTERM)
"""uvicorn ends by the signal that it was told to end by."""


@pytest.fixture
def observer(cluster: FaultCluster) -> Iterator[Observer]:
    cluster.wait_whole()
    with Observer({node.name: node.url for node in cluster.nodes}, SERVICE, cluster.headers) as started:
        yield started


@pytest.fixture
def make(cluster: FaultCluster, observer: Observer, tmp_path: Path) -> Callable[..., ServiceProcess]:
    """An instance by its name, not started yet."""
    urls = [node.url for node in cluster.nodes]
    return lambda name, **options: ServiceProcess(name, tmp_path, urls, observer.truth, ttl_s=TTL_S, **options)


def test_an_instance_that_is_killed_is_gone_within_its_time_to_live_and_back_as_soon_as_it_listens(
    observer: Observer, make: Callable[..., ServiceProcess], fault_round: int, show: Show
) -> None:
    one, other, third = services = [make(f"kill-{fault_round}-{number}") for number in range(3)]
    with service_processes(*services):
        observer.wait_right()
        one.kill()
        gone_s = observer.wait_right()
        one.start()
        back_s = observer.wait_right()
        # Two of three: fewer than half are alive, so the service is protected, and probes find out who is dead.
        other.kill()
        third.kill()
        most_gone_s = observer.wait_right()
        figures = observer.require(dead_s_max=DEAD_S_MAX, missing_s_max=RETURN_S_MAX)
    show(
        f"\nkill -9, time to live {TTL_S} s: one of three gone after {gone_s:.2f} s, back after {back_s:.2f} s, two of "
        f"three gone after {most_gone_s:.2f} s\n{figures}"
    )


def test_an_instance_whose_event_loop_is_blocked_is_never_missing(
    observer: Observer, make: Callable[..., ServiceProcess], fault_round: int, show: Show
) -> None:
    """Its heartbeats have a thread of their own."""
    one = make(f"block-{fault_round}")
    with service_processes(one):
        observer.wait_right()
        began_missing = len(observer.spans(MISSING))
        with one.blocked(BLOCKED_S):
            observer.run_for(BLOCKED_S)
            observer.wait_right()
        assert len(observer.spans(MISSING)) == began_missing, observer.figures()
        figures = observer.require(dead_s_max=0.0, missing_s_max=RETURN_S_MAX)
    show(f"\nevent loop blocked for {BLOCKED_S:.0f} s, time to live {TTL_S} s\n{figures}")


def test_an_instance_that_is_stopped_for_longer_than_its_time_to_live_comes_back(
    observer: Observer, make: Callable[..., ServiceProcess], fault_round: int, show: Show
) -> None:
    """Its port still takes connections, so while it is one of few, it may well be shown as stale; among many that are
    alive it is gone."""
    one, *_ = services = [make(f"stop-{fault_round}-{number}") for number in range(3)]
    with service_processes(*services):
        observer.wait_right()
        one.pause()
        gone_s = observer.wait_right()
        observer.run_for(TTL_S)
        one.resume()
        back_s = observer.wait_right()
        figures = observer.require(dead_s_max=DEAD_S_MAX, missing_s_max=RETURN_S_MAX)
    show(f"\nSIGSTOP, time to live {TTL_S} s: gone after {gone_s:.2f} s, back after {back_s:.2f} s\n{figures}")


def test_an_instance_that_is_told_to_end_is_out_of_discovery_before_it_is_gone(
    observer: Observer, make: Callable[..., ServiceProcess], fault_round: int, show: Show
) -> None:
    one, _ = services = [make(f"end-{fault_round}-{number}") for number in range(2)]
    with service_processes(*services):
        observer.wait_right()
        assert one.terminate() in ENDED, one.log
        observer.wait_right()
        figures = observer.require(dead_s_max=0.0, missing_s_max=RETURN_S_MAX)
        assert observer.spans(DEAD) == []
    show(f"\nSIGTERM\n{figures}")


def test_workers_that_share_a_socket_are_one_instance_whoever_of_them_is_killed(
    observer: Observer, make: Callable[..., ServiceProcess], fault_round: int, show: Show
) -> None:
    several = make(f"workers-{fault_round}", workers=3)
    with service_processes(several):
        observer.wait_right()
        began_missing = len(observer.spans(MISSING))
        for _ in range(2):
            several.kill_worker()
            observer.run_for(TTL_S + LEASE_LATE_S_MAX)
        observer.wait_right()
        assert len(observer.spans(MISSING)) == began_missing, observer.figures()
        several.kill()
        observer.wait_right()
        figures = observer.require(dead_s_max=DEAD_S_MAX, missing_s_max=RETURN_S_MAX)
    show(f"\nuvicorn with 3 workers, two of them killed, then all\n{figures}")


def test_gunicorns_workers_are_one_instance_too(
    observer: Observer,
    make: Callable[..., ServiceProcess],
    fault_round: int,
    show: Show,
) -> None:
    several = make(f"gunicorn-{fault_round}", workers=2, server=GUNICORN)
    with service_processes(several):
        observer.wait_right()
        began_missing = len(observer.spans(MISSING))
        several.kill_worker()
        observer.run_for(TTL_S + LEASE_LATE_S_MAX)
        observer.wait_right()
        assert len(observer.spans(MISSING)) == began_missing, observer.figures()
        assert several.terminate() in ENDED, several.log
        observer.wait_right()
        figures = observer.require(dead_s_max=0.0, missing_s_max=RETURN_S_MAX)
    show(f"\ngunicorn with 2 workers, one of them killed, then told to end\n{figures}")


def test_leaders_that_change_cost_no_live_instance_and_keep_no_dead_one(
    cluster: FaultCluster, observer: Observer, make: Callable[..., ServiceProcess], fault_round: int, show: Show
) -> None:
    """Killed, stopped, and handing over, one after the other; an instance dies in the middle of it."""
    one, *_ = services = [make(f"leaders-{fault_round}-{number}") for number in range(3)]
    with service_processes(*services):
        observer.wait_right()
        began_missing = len(observer.spans(MISSING))
        for number in range(LEADER_CHANGES):
            change_leader(cluster, number, observer)
            if number == LEADER_CHANGES - CHANGES_AFTER_DEATH - 1:
                one.kill()
        gone_s = observer.wait_right()
        assert len(observer.spans(MISSING)) == began_missing, observer.figures()
        figures = observer.require(
            dead_s_max=DEAD_S_MAX + CHANGES_AFTER_DEATH * NEW_LEADER_S_MAX, missing_s_max=RETURN_S_MAX
        )
    show(
        f"\n{LEADER_CHANGES} changes of leader, {LEADER_INTERVAL_S:g} s apart; the one that died meanwhile was gone "
        f"{gone_s:.2f} s after the last, {observer.longest_s(DEAD):.2f} s after its death\n{figures}"
    )


def change_leader(cluster: FaultCluster, number: int, observer: Observer) -> None:
    leader = cluster.wait_whole()
    others = cluster.others(leader)
    if number % 3 == 0:
        leader.kill()
        cluster.leader_of(others, other_than=[leader.name])
        observer.run_for(LEADER_INTERVAL_S)
        leader.restart()
    elif number % 3 == 1:
        cluster.pause(leader)
        cluster.leader_of(others, other_than=[leader.name])
        observer.run_for(LEADER_INTERVAL_S)
        cluster.resume(leader)
    else:
        cluster.hand_over(others[0])
        observer.run_for(LEADER_INTERVAL_S)


def test_with_all_nodes_down_clients_go_on_by_their_last_copy(
    cluster: FaultCluster, observer: Observer, make: Callable[..., ServiceProcess], fault_round: int, show: Show
) -> None:
    """Who dies meanwhile is told of until the nodes are back and its time to live is over; who lives is never missing,
    neither while nobody can take its heartbeats nor when they are back."""
    one, *_ = services = [make(f"away-{fault_round}-{number}") for number in range(3)]
    with service_processes(*services):
        observer.wait_right()
        began_missing = len(observer.spans(MISSING))
        for node in cluster.nodes:
            node.kill()
        observer.run_for(AWAY_S / 2)
        one.kill()
        died_s = time.monotonic()
        observer.run_for(AWAY_S / 2)
        cluster.start()
        cluster.wait_whole()
        away_s = time.monotonic() - died_s
        gone_s = observer.wait_right()
        observer.run_for(TTL_S + LEASE_LATE_S_MAX)  # so long a life that was not renewed since would last
        assert len(observer.spans(MISSING)) == began_missing, observer.figures()
        figures = observer.require(dead_s_max=away_s + NEW_LEADER_S_MAX + DEAD_S_MAX, missing_s_max=RETURN_S_MAX)
    show(
        f"\nall nodes down for {AWAY_S:g} s: the one that died meanwhile was gone {gone_s:.2f} s after they were "
        f"back\n{figures}"
    )
