"""The driver, with real files and real sockets: what its callers may rely on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quorate_core.clock import ManualClock
from quorate_core.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    InvariantViolation,
    NotFound,
    NotImplementedHere,
    NotProposed,
    OutcomeUnknown,
    PayloadTooLarge,
    QuorateError,
    SettingsError,
    TooManyRequests,
    Unavailable,
)
from quorate_raft.core.messages import AppendRequest, Entry
from quorate_raft.core.ready import Role
from quorate_raft.runtime.disk import DiskFailed
from quorate_raft.runtime.driver import TICKS_AT_ONCE_MAX
from quorate_raft.runtime.forwarding import CALL_BYTES_MAX, CALLS_OUT_MAX, PROPOSE_METHOD
from quorate_raft.runtime.wal import DamagedLog
from support.raft_members import PATIENCE_S, RunningCluster, running_cluster

SOON_S = 0.2
"""A deadline that is meant to pass."""


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[RunningCluster]:
    async with running_cluster("abc", tmp_path) as cluster:
        await cluster.leader()
        yield cluster


class HandTicker:
    """A ticker that a test drives: `tick` returns when the driver waits for the next one, as `started` does first."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._tick = asyncio.Event()

    async def __call__(self, _seconds: float) -> None:
        self._asked.set()
        await self._tick.wait()
        self._tick.clear()

    async def started(self) -> None:
        await self._asked.wait()

    async def tick(self) -> None:
        self._asked.clear()
        self._tick.set()
        await self._asked.wait()


async def test_a_write_through_any_member_gives_the_result_of_applying_it_there(three: RunningCluster) -> None:
    for count, name in enumerate("abc", start=1):
        word = f"from {name}".encode()
        assert await three.write(name, word) == count
        assert word in three[name].machine.words


async def test_what_one_member_wrote_another_reads_after_its_barrier(three: RunningCluster) -> None:
    """Linearizability: the barrier returns when everything committed before the call is applied here."""
    for number in range(10):
        for writer, reader in ("ab", "bc", "ca"):
            word = f"{writer}{number}".encode()
            await three.write(writer, word)
            await three[reader].driver.read_index(PATIENCE_S)
            assert word in three[reader].machine.words


async def test_many_writes_from_all_members_at_once_are_each_applied_once(three: RunningCluster) -> None:
    await three.follower()
    words = [f"{name}{number}".encode() for number in range(200) for name in "abc"]
    await asyncio.gather(*(three.write(word.decode()[0], word) for word in words))
    for member in three.members.values():
        await member.driver.read_index(PATIENCE_S)
        assert sorted(member.machine.words) == sorted(words)
    assert three["a"].machine.words == three["b"].machine.words == three["c"].machine.words


async def test_an_error_that_the_command_deserves_is_raised_to_its_caller(three: RunningCluster) -> None:
    for member in (await three.leader(), await three.follower()):
        with pytest.raises(Conflict, match="refused"):
            await member.driver.propose(b"!no", PATIENCE_S)


async def test_status_says_who_leads_and_how_far_things_are(three: RunningCluster) -> None:
    leader = await three.leader()
    await three.write(leader.name, b"word")
    status = leader.driver.status()
    assert (status.role, status.leader, status.members) == (Role.LEADER, leader.name, ("a", "b", "c"))
    assert status.last_index >= status.commit_index >= status.applied_index >= 2
    follower = await three.follower()
    assert follower.driver.status().leader == leader.name
    assert follower.driver.status().term == status.term


async def test_a_leader_that_closes_hands_over_and_writes_go_on(three: RunningCluster) -> None:
    leader = await three.leader()
    await three.write(leader.name, b"before")
    successors = [m.driver for m in three.members.values() if m is not leader]
    await three.end(leader.name)
    assert [d.status().role for d in successors].count(Role.LEADER) == 1, "it was handed over before the end"
    successor = await three.leader()
    await three.write(successor.name, b"after")
    assert successor.machine.words[-2:] == [b"before", b"after"]


async def test_a_leader_that_is_killed_is_replaced_and_nothing_acknowledged_is_lost(three: RunningCluster) -> None:
    leader = await three.leader()
    for number in range(20):
        await three.write(leader.name, b"%d" % number)
    await three.end(leader.name, kill=True)
    successor = await three.leader()
    await three.write(successor.name, b"after")
    assert successor.machine.words == [*(b"%d" % number for number in range(20)), b"after"]


async def test_a_member_that_comes_back_catches_up(three: RunningCluster) -> None:
    follower = await three.follower()
    await three.end(follower.name, kill=True)
    leader = await three.leader()
    await three.write(leader.name, b"meanwhile")
    again = three.make(follower.name)
    await again.driver.start()
    await again.machine.has(b"meanwhile")


async def test_all_members_come_back_with_everything(tmp_path: Path) -> None:
    async with running_cluster("abc", tmp_path) as cluster:
        leader = await cluster.leader()
        for number in range(50):
            await cluster.write(leader.name, b"%d" % number)
    async with running_cluster("abc", tmp_path) as cluster:
        leader = await cluster.leader()
        assert leader.machine.words == [b"%d" % number for number in range(50)]
        await cluster.write(leader.name, b"more")


async def test_a_single_member_works_alone_and_comes_back(tmp_path: Path) -> None:
    for boot in range(3):
        async with running_cluster("a", tmp_path) as cluster:
            leader = await cluster.leader()
            assert await leader.driver.propose(b"%d" % boot, PATIENCE_S) == boot + 1
            assert await leader.driver.read_index(PATIENCE_S) >= boot + 1


async def test_a_single_member_acknowledges_nothing_that_is_not_durable(tmp_path: Path) -> None:
    async with running_cluster("a", tmp_path) as cluster:
        leader = await cluster.leader()
        leader.disk.let_go.clear()
        with pytest.raises(OutcomeUnknown):
            await leader.driver.propose(b"word", SOON_S)
        assert leader.machine.words == []
        leader.disk.let_go.set()
        await leader.machine.has(b"word")


async def test_a_failure_to_persist_is_final(three: RunningCluster) -> None:
    """Pitfall (fsyncgate): it is never retried; the owner of the tasks is told, and every caller too."""
    leader = await three.leader()
    leader.disk.fails = True
    # Its followers may have agreed to the write already, but it is not applied here.
    with pytest.raises(OutcomeUnknown, match="the member failed") as told:
        await leader.driver.propose(b"word", PATIENCE_S)
    assert "wal-" not in told.value.detail, "a client learns no path of the server"
    async with asyncio.timeout(PATIENCE_S):
        await leader.failed.wait()
    assert isinstance(leader.failures[0], DiskFailed)
    leader.disk.fails = False
    with pytest.raises(Unavailable):
        await leader.driver.propose(b"again", PATIENCE_S)
    with pytest.raises(Unavailable):
        leader.driver.status()
    assert leader.machine.words == []
    successor = await three.leader(other_than=leader.name)
    await three.write(successor.name, b"goes on")


async def test_a_state_machine_that_raises_stops_its_member(three: RunningCluster) -> None:
    leader = await three.leader()
    leader.machine.failure = InvariantViolation("the map is full")
    with pytest.raises(OutcomeUnknown, match="the member failed"):
        await leader.driver.propose(b"word", PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        await leader.failed.wait()
    assert leader.failures == [leader.machine.failure]


async def test_an_impossible_message_stops_the_member(tmp_path: Path) -> None:
    async with running_cluster("ab", tmp_path) as cluster:
        leader = await cluster.leader()
        other = "b" if leader.name == "a" else "a"
        leader.driver.on_message(AppendRequest(other, leader.name, leader.driver.status().term, 1, 1, (), 1))
        async with asyncio.timeout(PATIENCE_S):
            await leader.failed.wait()
        assert "both lead term" in str(leader.failures[0])


async def test_a_message_that_makes_no_sense_is_refused_and_does_no_harm(three: RunningCluster) -> None:
    leader, follower = await three.leader(), await three.follower()
    await three.write(leader.name, b"word")
    await follower.machine.has(b"word")
    status = follower.driver.status()
    gap = (Entry(status.last_index + 5, status.term),)
    follower.driver.on_message(
        AppendRequest(leader.name, follower.name, status.term, status.last_index, status.term, gap, 0)
    )
    assert await three.write(follower.name, b"more") == 2


async def test_without_a_majority_writes_are_told_that_their_outcome_is_unknown(three: RunningCluster) -> None:
    leader = await three.leader()
    leader.network.cut = set("abc")
    with pytest.raises(OutcomeUnknown, match="was proposed, and its outcome was not seen in time"):
        await leader.driver.propose(b"word", SOON_S)


async def test_without_a_leader_writes_are_told_to_try_again(tmp_path: Path) -> None:
    async with running_cluster("abc", tmp_path) as cluster:
        await cluster.leader()
        for name in "bc":
            await cluster.end(name, kill=True)
        member = cluster["a"]
        async with asyncio.timeout(PATIENCE_S):
            while member.driver.status().leader:
                with contextlib.suppress(QuorateError):
                    await member.driver.read_index(SOON_S)
        with pytest.raises(NotProposed, match="no leader is known"):
            await member.driver.propose(b"word", PATIENCE_S)
        with pytest.raises(NotProposed, match="no leader is known"):
            await member.driver.read_index(SOON_S)
        with pytest.raises(NotProposed, match="no leader is known"):
            await member.driver.call_leader("any", b"", SOON_S)


async def test_a_write_that_another_leader_overwrote_may_be_tried_again(three: RunningCluster) -> None:
    """The entry of a leader that was cut off is surely lost once a later term's entry is applied here."""
    old = await three.leader()
    old.network.cut = set("abc")
    for member in three.members.values():
        if member is not old:
            member.network.cut = {old.name}
    lost = asyncio.gather(old.driver.propose(b"lost", PATIENCE_S), return_exceptions=True)
    new = await three.leader(other_than=old.name)
    await three.write(new.name, b"kept")
    for member in three.members.values():
        member.network.cut = set()
    (outcome,) = await lost
    assert isinstance(outcome, NotProposed)
    assert "was replaced before the write was agreed" in outcome.detail
    await old.driver.read_index(PATIENCE_S)
    assert old.machine.words == [b"kept"]


async def test_a_forwarded_write_whose_leader_died_is_settled_when_the_next_one_leads(three: RunningCluster) -> None:
    """Either it was agreed on and gives its result, or it surely was not."""
    old = await three.leader()
    follower = await three.follower()
    for member in three.members.values():
        member.network.cut = {old.name} if member is not old else set()
    old.network.cut = set("abc")
    # The call itself goes through, but the leader can replicate no more.
    follower.network.cut = set()
    write = asyncio.gather(follower.driver.propose(b"word", PATIENCE_S), return_exceptions=True)
    await three.leader(other_than=old.name)
    (outcome,) = await write
    assert isinstance(outcome, NotProposed)
    assert b"word" not in follower.machine.words


async def test_writes_that_wait_for_a_leader_that_does_not_answer_may_be_tried_again(three: RunningCluster) -> None:
    """Calls are bounded; what waits behind them was not sent, and what was sent is settled by the next leader."""
    old, follower = await three.leader(), await three.follower()
    old.network.loses_calls, old.network.cut = True, set("abc")

    async def attempt(word: bytes) -> object:
        try:
            return await follower.driver.propose(word, PATIENCE_S)
        except QuorateError as error:
            return error

    async with asyncio.TaskGroup() as group:
        attempts = []
        for number in range(CALLS_OUT_MAX + 3):
            attempts.append(group.create_task(attempt(b"%d" % number)))
            await follower.disk.run(list)  # a turn of the loop, so that each goes in a call of its own
    outcomes = [attempt.result() for attempt in attempts]
    assert [type(outcome) for outcome in outcomes] == [NotProposed] * len(outcomes)
    reasons = [str(outcome) for outcome in outcomes]
    assert sum("the leader changed before it was asked" in reason for reason in reasons) == 3
    assert sum("was replaced before the write was agreed" in reason for reason in reasons) == CALLS_OUT_MAX
    assert await three.write(follower.name, b"goes on") == 1


async def test_large_writes_through_a_follower_go_in_several_calls(three: RunningCluster) -> None:
    follower = await three.follower()
    words = [b"%d" % number + b"x" * (CALL_BYTES_MAX // 3) for number in range(10)]
    counts = await asyncio.gather(*(follower.driver.propose(word, PATIENCE_S) for word in words))
    assert sorted(counts) == list(range(1, 11))
    assert follower.machine.words == words


async def test_a_member_whose_state_is_ahead_of_its_log_refuses_to_start(tmp_path: Path) -> None:
    """Pitfall (etcd 9808): what was applied and is not in the log means that durable entries are gone."""
    async with running_cluster("a", tmp_path) as cluster:
        await cluster.leader()
        await cluster.end("a")
        member = cluster.make("a")
        member.machine.applied_index = 99
        with pytest.raises(DamagedLog, match="has applied 99"):
            await member.driver.start()
        with pytest.raises(Unavailable):
            member.driver.status()


async def test_a_member_whose_peer_address_is_gone_does_not_start_half(tmp_path: Path) -> None:
    async with running_cluster("ab", tmp_path, started="a") as cluster:
        member = cluster.make("b")
        member.listener.close()
        with pytest.raises((OSError, ValueError)):
            await member.driver.start()
        with pytest.raises(Unavailable):
            await member.driver.propose(b"word", PATIENCE_S)


async def test_a_closed_member_answers_no_calls(tmp_path: Path) -> None:
    async with running_cluster("a", tmp_path) as cluster:
        member = cluster["a"]
        await cluster.leader()
        await member.driver.close()
        with pytest.raises(Unavailable):
            await member.driver.on_call("b", PROPOSE_METHOD, b"")


async def test_a_leader_that_is_cut_off_does_not_confirm_itself(three: RunningCluster) -> None:
    leader = await three.leader()
    assert await leader.driver.confirm_leadership(PATIENCE_S) == leader.driver.status().term
    with pytest.raises(NotProposed):
        await (await three.follower()).driver.confirm_leadership(PATIENCE_S)
    leader.network.cut = set("abc")
    with pytest.raises(NotProposed):
        await leader.driver.confirm_leadership(SOON_S)


async def test_a_read_that_the_leader_does_not_confirm_in_time_says_so(three: RunningCluster) -> None:
    leader = await three.leader()
    leader.network.cut = set("abc")
    with pytest.raises((DeadlineExceeded, NotProposed)):
        await leader.driver.read_index(SOON_S / 4)


async def test_a_read_waits_through_a_change_of_leaders(three: RunningCluster) -> None:
    """It is asked again, inside its deadline."""
    leader, follower = await three.leader(), await three.follower()
    await three.write(leader.name, b"word")
    reads = asyncio.gather(*(follower.driver.read_index(PATIENCE_S) for _ in range(10)))
    await three.end(leader.name, kill=True)
    assert min(await reads) >= 2
    later = await follower.driver.read_index(PATIENCE_S)
    assert later >= 2


async def test_calls_reach_the_leader_from_any_member(three: RunningCluster) -> None:
    async def greet(sender: str, payload: bytes) -> bytes:
        if payload == b"nobody":
            raise NotFound("nobody is here")
        return sender.encode() + b" says " + payload

    for member in three.members.values():
        member.driver.register_call("greet", greet)
    await three.follower()
    for name, member in three.members.items():
        assert await member.driver.call_leader("greet", b"hello", PATIENCE_S) == f"{name} says hello".encode()
        with pytest.raises(NotFound, match="nobody is here"):
            await member.driver.call_leader("greet", b"nobody", PATIENCE_S)
        with pytest.raises(NotImplementedHere, match="no call 'unknown'"):
            await member.driver.call_leader("unknown", b"", PATIENCE_S)


async def test_a_call_that_takes_too_long_has_an_unknown_outcome(three: RunningCluster) -> None:
    async def never(_sender: str, _payload: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    for member in three.members.values():
        member.driver.register_call("never", never)
    for member in (await three.leader(), await three.follower()):
        with pytest.raises(OutcomeUnknown):
            await member.driver.call_leader("never", b"", SOON_S)


async def test_a_name_of_a_call_is_taken_once(three: RunningCluster) -> None:
    async def handler(_sender: str, _payload: bytes) -> bytes:
        return b""

    three["a"].driver.register_call("one", handler)
    for taken in ("one", PROPOSE_METHOD):
        with pytest.raises(InvalidRequest):
            three["a"].driver.register_call(taken, handler)


async def test_forwarded_proposals_that_make_no_sense_or_are_for_another_term_are_refused(
    three: RunningCluster,
) -> None:
    leader, follower = await three.leader(), await three.follower()
    with pytest.raises(InvalidRequest):
        await follower.network.call(leader.name, PROPOSE_METHOD, b"\xff", PATIENCE_S)
    with pytest.raises(NotProposed, match="does not lead term 99"):
        await follower.network.call(leader.name, PROPOSE_METHOD, b"\x92\x63\x90", PATIENCE_S)


async def test_too_much_at_once_is_refused_before_it_is_proposed(tmp_path: Path) -> None:
    """Bounded admission, by count, by bytes and by size; what is under way goes on."""
    limits = {"proposals_max": 10, "proposal_bytes_max": 1000, "entry_bytes_max": 500, "readers_max": 3}
    async with running_cluster("ab", tmp_path, **limits) as cluster:
        leader, follower = await cluster.leader(), await cluster.follower()
        for member in (leader, follower):
            with pytest.raises(PayloadTooLarge):
                await member.driver.propose(b"x" * 501, PATIENCE_S)
            words = [f"{member.name}{number}".encode() for number in range(30)]
            outcomes = await asyncio.gather(
                *(member.driver.propose(word, PATIENCE_S) for word in words), return_exceptions=True
            )
            refused = [outcome for outcome in outcomes if isinstance(outcome, TooManyRequests)]
            assert len(refused) == 20
            outcomes = await asyncio.gather(
                *(member.driver.propose(b"y" * 400, PATIENCE_S) for _ in range(5)), return_exceptions=True
            )
            assert sum(isinstance(outcome, TooManyRequests) for outcome in outcomes) == 3
            outcomes = await asyncio.gather(
                *(member.driver.read_index(PATIENCE_S) for _ in range(5)), return_exceptions=True
            )
            assert sum(isinstance(outcome, TooManyRequests) for outcome in outcomes) == 2
        assert len(leader.machine.words) == 2 * (10 + 2)


async def test_a_leader_bounds_what_its_log_has_and_is_not_applied(tmp_path: Path) -> None:
    """Whoever proposed it: a follower's callers are told by the leader's own limit."""
    async with running_cluster("abc", tmp_path, proposals_max=5) as cluster:
        leader, follower = await cluster.leader(), await cluster.follower()
        await leader.driver.read_index(PATIENCE_S)
        for member in cluster.members.values():
            member.disk.let_go.clear()
        own = asyncio.gather(*(leader.driver.propose(b"own", PATIENCE_S) for _ in range(5)))
        with pytest.raises(TooManyRequests):
            await follower.driver.propose(b"one more", PATIENCE_S)
        for member in cluster.members.values():
            member.disk.let_go.set()
        assert sorted(await own) == [1, 2, 3, 4, 5]


async def test_a_caller_that_gives_up_leaves_nothing_behind(three: RunningCluster) -> None:
    for member in (await three.leader(), await three.follower()):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(member.driver.propose(b"word", PATIENCE_S)) for _ in range(3)]
            tasks += [group.create_task(member.driver.read_index(PATIENCE_S)) for _ in range(3)]
            await member.disk.run(list)  # a turn of the loop: they wait by then
            for task in tasks:
                task.cancel()
        assert await member.driver.propose(b"next", PATIENCE_S) >= 1
        assert len(member.driver._proposals) == 0


async def test_callers_are_told_when_their_member_closes(three: RunningCluster) -> None:
    leader = await three.leader()
    leader.network.cut = set("abc")
    write = asyncio.gather(leader.driver.propose(b"word", PATIENCE_S), return_exceptions=True)
    read = asyncio.gather(leader.driver.read_index(PATIENCE_S), return_exceptions=True)
    await leader.disk.run(list)  # whatever takes a turn of the loop: the calls are under way then
    await leader.driver.close()
    assert [type(outcome) for outcome in await write + await read] == [OutcomeUnknown, Unavailable]
    with pytest.raises(Unavailable):
        await leader.driver.propose(b"word", PATIENCE_S)
    await leader.driver.close()


async def test_listeners_hear_of_leadership_only_when_its_first_entry_is_applied(tmp_path: Path) -> None:
    heard: list[tuple[bool, int, int]] = []
    async with running_cluster("a", tmp_path) as cluster:
        member = cluster["a"]
        member.driver.add_leadership_listener(
            lambda leads, term: heard.append((leads, term, member.machine.applied_index))
        )
        await cluster.leader()
        await cluster.end("a")
    assert heard == [(True, 1, 1), (False, 1, 1)]


async def test_a_stalled_loop_does_not_depose_a_leader_that_may_be_alive(tmp_path: Path) -> None:
    """Missed ticks are not made up for: what the leader sent meanwhile is still unread."""
    clock, ticker = ManualClock(), HandTicker()
    faults = {"clock": clock, "ticker": ticker, "random_below": lambda below: 0}
    async with running_cluster("abc", tmp_path, started="a", **faults) as cluster:
        driver = cluster["a"].driver
        await ticker.started()
        stalls = 0
        while driver.status().role is Role.FOLLOWER:
            clock.advance(60.0)
            await ticker.tick()
            stalls += 1
        assert stalls == 10 // TICKS_AT_ONCE_MAX


async def test_a_damaged_log_refuses_to_start(tmp_path: Path) -> None:
    async with running_cluster("a", tmp_path) as cluster:
        await cluster.leader()
        for number in range(5):
            await cluster.write("a", b"word %d" % number)
    (segment,) = (tmp_path / "a").glob("wal-*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(b"word 1")] ^= 0x01
    segment.write_bytes(data)
    with pytest.raises(SettingsError, match=rf"{segment.name} at offset \d+; a whole record follows"):
        async with running_cluster("a", tmp_path):
            pass


async def test_a_folder_of_another_cluster_refuses_to_start(tmp_path: Path) -> None:
    async with running_cluster("a", tmp_path) as cluster:
        await cluster.leader()
    with pytest.raises(SettingsError, match="belongs to member 'a' of cluster 'test-cluster'"):
        async with running_cluster("a", tmp_path, cluster_id="another"):
            pass
