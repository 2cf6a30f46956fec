"""Nodes that do not hear each other: whole, partial and one-way cuts, while clients reach both sides."""

import base64
from collections.abc import Callable
from random import Random

import pytest
from quorate_simulation.linearizability import Operation, Result, check
from quorate_simulation.models import KeyAnswer, KeyCall, KeyModel, Verb
from support.fault_breaker import Breaker
from support.fault_clients import Outcome, Reply, ask
from support.fault_cluster import FaultCluster
from support.fault_network import FaultNetwork
from support.node_processes import NodeProcess, until

Show = Callable[[str], None]
Cut = Callable[[FaultNetwork, str], None]

WRITES = 30
KEPT_TTL_S = 8
"""A client that asks a node which nobody reaches waits for a second: with this many it is not unlucky for so long."""
FAULTS = 5
FAULT_S_MIN, FAULT_S_MAX = 0.1, 2.5
"""How long one lasts before the next comes on top of it: less than an election takes, or several of them."""
IMPATIENT_CALL_S_MAX = 1.0


@pytest.mark.parametrize(
    "cut",
    [FaultNetwork.isolate, FaultNetwork.mute, FaultNetwork.deafen, FaultNetwork.unplug],
    ids=["cut off", "not heard", "not hearing", "unplugged"],
)
def test_a_leader_that_is_cut_off_is_replaced_and_serves_nothing_old(
    placed: FaultCluster, network: FaultNetwork, cut: Cut, fault_round: int, show: Show
) -> None:
    """One-way cuts too: a leader that is not answered steps down, and one that is not heard is replaced."""
    with placed.load(f"{cut.__name__}-{fault_round}") as load, placed.instance("kept", KEPT_TTL_S) as kept:
        leader = placed.wait_whole()
        others = placed.others(leader)
        cut(network, leader.name)
        placed.leader_of(others, other_than=[leader.name])
        load.wait_for_writes(WRITES, [node.name for node in others])
        network.heal()
        placed.wait_whole()
        load.wait_for_writes(WRITES, [leader.name])
    kept.require_no_early_end()
    show(f"\n{load.judge()}")


def test_a_follower_that_hears_only_the_other_follower_unseats_nobody(
    placed: FaultCluster, network: FaultNetwork, fault_round: int, show: Show
) -> None:
    """The leader and one follower are cut from each other, and both reach the third. The follower would like to be
    elected all the time, at first with as much in its log as the others; neither leader nor term change, and writes go
    on (etcd #9333)."""
    leader = placed.wait_whole()
    follower, third = placed.others(leader)
    term = placed.view(leader)["term"]

    def require_unchanged() -> None:
        views = [placed.view(node) for node in (leader, third)]
        assert [(view["leader"], view["term"]) for view in views] == [(leader.name, term)] * 2
        assert placed.view(follower)["term"] == term

    network.cut(leader.name, follower.name)
    until("it asks for votes", lambda: placed.view(follower)["role"] == "pre-candidate")
    with placed.load(f"partial-{fault_round}") as load:
        load.wait_for_writes(WRITES, [leader.name])
        load.wait_for_writes(WRITES, [third.name])
        require_unchanged()
        network.heal()
        load.wait_for_writes(WRITES, [follower.name])
        placed.wait_whole()
        require_unchanged()
    show(f"\n{load.judge()}")


def test_a_lone_node_answers_no_write_and_no_read_but_those_that_ask_for_old_ones(
    placed: FaultCluster, network: FaultNetwork, fault_round: int
) -> None:
    """What a serializable read of the lone node answers, the judge refuses as linearizable: it would see it if one
    without that flag were answered so."""
    leader = placed.wait_whole()
    other = placed.others(leader)[0]
    key = f"lone-{fault_round}".encode()
    old = _put(placed, other, key, b"old")
    until("the leader has it", lambda: _found(_get(placed, leader, key, serializable=True)) == b"old")
    network.isolate(leader.name)
    placed.leader_of(placed.others(leader), other_than=[leader.name])
    new = _put(placed, other, key, b"new")
    stale = _get(placed, leader, key, serializable=True)
    current = _get(placed, other, key)
    assert _get(placed, leader, key).outcome is not Outcome.DONE
    assert _call(placed, leader, "put", key=_text(key), value=_text(b"lost")).outcome is not Outcome.DONE
    network.heal()
    placed.wait_whole()
    written = [_operation(KeyCall(Verb.PUT, key, value), reply) for value, reply in ((b"old", old), (b"new", new))]
    read = KeyCall(Verb.GET, key)
    assert check(KeyModel(), [*written, _operation(read, current)]).result is Result.LINEARIZABLE
    assert check(KeyModel(), [*written, _operation(read, stale)]).result is Result.NOT_LINEARIZABLE


def test_whatever_happens_what_clients_see_is_linearizable(
    placed: FaultCluster, network: FaultNetwork, fault_round: int, show: Show
) -> None:
    """Faults that the round's number draws, also of all nodes at once."""
    random = Random(fault_round)
    breaker = Breaker(placed, network, random)
    with placed.load(f"random-{fault_round}", IMPATIENT_CALL_S_MAX) as load:
        for _ in range(FAULTS):
            breaker.step()
            load.run_for(random.uniform(FAULT_S_MIN, FAULT_S_MAX))
        breaker.mend()
        placed.wait_whole()
        load.wait_for_writes(WRITES)
    show(f"\n{load.judge()}: {', '.join(breaker.done)}")


def _put(placed: FaultCluster, node: NodeProcess, key: bytes, value: bytes) -> Reply:
    reply = _call(placed, node, "put", key=_text(key), value=_text(value))
    assert reply.outcome is Outcome.DONE, reply.body
    return reply


def _get(placed: FaultCluster, node: NodeProcess, key: bytes, **options: bool) -> Reply:
    return _call(placed, node, "range", key=_text(key), **options)


def _call(placed: FaultCluster, node: NodeProcess, method: str, **body: object) -> Reply:
    return ask(placed.http, "POST", f"{node.url}/v3/kv/{method}", json=body, headers=placed.headers)


def _found(reply: Reply) -> bytes | None:
    kvs = reply.body.get("kvs", []) if reply.outcome is Outcome.DONE else []
    return base64.b64decode(kvs[0]["value"]) if kvs else None


def _operation(call: KeyCall, reply: Reply) -> Operation:
    revision = reply.body["header"]["revision"] if call.verb is Verb.PUT else reply.body["kvs"][0]["mod_revision"]
    return Operation(0, call, KeyAnswer(_found(reply), revision=int(revision)), reply.began_s, reply.ended_s)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
