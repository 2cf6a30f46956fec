"""Leases while leaders come and go: what a deposed leader may not do, and what a new one may not forget."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from quorate_core.clock import ManualClock
from quorate_core.errors import NotFound, NotProposed, OutcomeUnknown, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_raft.core.messages import Entry
from quorate_store.commands import Command, LeaseExpire, LeaseGrant, decode_command, encode_command
from quorate_store.lease_keeper import TICK_INTERVAL_S
from quorate_store.leases import ADOPTED_AT_ONCE_MAX, PROMOTION_GRACE_S
from quorate_store.model import EventKind
from quorate_store.raft_engine import RaftStore
from quorate_store.replicated_log import LeadershipListener
from quorate_store.state import StateMachine
from support.store_local import DirectLog
from support.store_model import entries_of

PATIENCE_S = 20.0


class SteeredLog(DirectLog):
    """A log whose leadership the test decides. While another member leads, what is proposed here is applied under
    that member's term, as a forwarded proposal is."""

    def __init__(self, machine: StateMachine) -> None:
        super().__init__(machine)
        self.leads = True
        self.is_cut_off = False
        """No majority answers: nothing is confirmed, and nothing that is proposed is agreed on."""
        self.loses_outcomes = 0
        """So many proposals are applied, and their proposer is not told."""
        self.proposed: list[Any] = []
        self.committed_only: list[Command] = []
        """Not applied here yet: a linearizable read waits for it."""
        self.before_append = asyncio.Event()
        self.before_append.set()
        self.waiting_to_append = 0
        self._listener: LeadershipListener | None = None

    def add_leadership_listener(self, listener: LeadershipListener) -> None:
        self._listener = listener
        super().add_leadership_listener(listener)

    def depose(self) -> None:
        """Another member leads from now on, in the next term."""
        self.leads = False
        self._term += 1
        assert self._listener is not None
        self._listener(False, self._term)

    def promote(self) -> None:
        self.leads, self.is_cut_off = True, False
        self._term += 1
        assert self._listener is not None
        self._listener(True, self._term)

    async def confirm_leadership(self, timeout_s: float) -> int:
        if self.is_cut_off or not self.leads:
            raise NotProposed("no majority confirms that this member leads")
        return await super().confirm_leadership(timeout_s)

    async def read_index(self, timeout_s: float) -> int:
        while self.committed_only:
            await super().propose(encode_command(self.committed_only.pop(0)), timeout_s)
        return await super().read_index(timeout_s)

    async def propose(self, data: bytes, timeout_s: float) -> Any:
        self.waiting_to_append += 1
        await self.before_append.wait()
        self.waiting_to_append -= 1
        self.proposed.append(decode_command(data))
        if self.is_cut_off:
            await asyncio.sleep(0)
            raise OutcomeUnknown("it stands in this member's log, and no majority has it")
        [result] = self._machine.apply([Entry(self._machine.applied_index + 1, self._term, data=data)])
        await asyncio.sleep(0)
        if self.loses_outcomes:
            self.loses_outcomes -= 1
            raise OutcomeUnknown("not seen in time")
        if isinstance(result, QuorateError):
            raise result
        return result


class Scene:
    """`clock` is what leases go by; `loop_clock` shows whether the event loop stands still."""

    def __init__(
        self, log: SteeredLog, machine: StateMachine, store: RaftStore, clock: ManualClock, loop_clock: ManualClock
    ) -> None:
        self.loop_clock = loop_clock
        self.log = log
        self.machine = machine
        self.store = store
        self.clock = clock

    async def until_gone(self, key: bytes, start_revision: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S), self.store.watch(key, start_revision=start_revision) as watch:
            async for batch in watch:
                if any(event.kind is EventKind.DELETE for event in batch.events):
                    return


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with staged(tmp_path) as made:
        yield made


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Scene]:
    failures: list[BaseException] = []
    machine = StateMachine(folder / "state", map_bytes=64 * 1024 * 1024)
    clock, loop_clock, log = ManualClock(), ManualClock(), SteeredLog(machine)
    async with TaskOwner("scene", failures.append) as tasks:
        store = RaftStore(log, machine, clock, tasks, loop_time_s=loop_clock.monotonic_s)
        await store.start()
        try:
            yield Scene(log, machine, store, clock, loop_clock)
        finally:
            await store.close()
    machine.close()
    assert failures == []


async def until(condition: Callable[[], bool]) -> None:
    """Returns when `condition` holds; everything else on the loop runs meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


async def ticks(store: RaftStore, count: int = 3) -> None:
    """Returns when the keeper has looked at its leases `count` times more."""
    keeper = store._leases
    seen = asyncio.Queue[None]()
    lessor = keeper._lessor
    assert lessor is not None
    look = lessor.due

    def looked(*arguments: Any) -> Any:
        seen.put_nowait(None)
        return look(*arguments)

    lessor.due = looked  # type: ignore[method-assign]
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(count):
            await seen.get()
    lessor.due = look  # type: ignore[method-assign]


async def test_keepalives_are_no_log_entries(scene: Scene) -> None:
    lease = (await scene.store.lease_grant(10)).lease
    before = scene.machine.applied_index
    for _ in range(20):
        scene.clock.advance(10 / 3)
        assert await scene.store.lease_keepalive([lease]) == []
    assert scene.machine.applied_index == before


async def test_a_leader_that_is_not_confirmed_ends_no_lease_and_promises_none(scene: Scene) -> None:
    """Pitfall (etcd 15247): a leader that is cut off, or was stuck, does not know what its successor has promised."""
    lease = (await scene.store.lease_grant(10)).lease
    scene.log.is_cut_off = True
    scene.clock.advance(60)
    await ticks(scene.store)
    assert scene.log.proposed[1:] == []
    with pytest.raises(NotProposed):
        await scene.store.lease_keepalive([lease])
    scene.log.is_cut_off = False
    await until(lambda: lease not in scene.machine.leases)
    with pytest.raises(NotFound):
        await scene.store.lease_time_to_live(lease)


async def test_an_end_proposed_by_a_deposed_leader_is_void(scene: Scene) -> None:
    """Pitfall (etcd 15247): it was confirmed, then deposed, and its proposal reached the log through its successor."""
    lease = (await scene.store.lease_grant(10)).lease
    await scene.store.put(b"k", b"", lease=lease)
    scene.log.before_append.clear()
    scene.clock.advance(11)
    await until(lambda: scene.log.waiting_to_append == 1)
    scene.log.depose()
    scene.log.before_append.set()
    await until(lambda: isinstance(scene.log.proposed[-1], LeaseExpire))
    assert scene.machine.leases.get(lease) is not None
    assert (await scene.store.range(b"k")).count == 1


@pytest.mark.parametrize("is_busy", [False, True])
async def test_time_in_which_the_event_loop_stood_still_does_not_count(scene: Scene, is_busy: bool) -> None:
    """Wherever it stood still: also while the end of another lease waited to be agreed on."""
    lease = (await scene.store.lease_grant(10)).lease
    short = (await scene.store.lease_grant(2)).lease
    if is_busy:
        scene.log.before_append.clear()
        scene.clock.advance(3)
        await until(lambda: scene.log.waiting_to_append == 1)
    left_s = (await scene.store.lease_time_to_live(lease)).remaining_ttl_s
    for clock in (scene.clock, scene.loop_clock):
        clock.advance(60)
    scene.log.before_append.set()
    await ticks(scene.store)
    assert lease in scene.machine.leases
    left_now_s = (await scene.store.lease_time_to_live(lease)).remaining_ttl_s
    assert left_s - 2 * TICK_INTERVAL_S <= left_now_s <= left_s
    assert (short in scene.machine.leases) is not is_busy
    scene.clock.advance(left_now_s)
    await until(lambda: lease not in scene.machine.leases)


async def test_a_new_leader_gives_every_lease_its_whole_time(scene: Scene) -> None:
    lease = (await scene.store.lease_grant(4)).lease
    await scene.store.put(b"k", b"", lease=lease)
    scene.clock.advance(1.9)  # too short for a checkpoint
    scene.log.depose()
    scene.clock.advance(100)
    scene.log.promote()
    status = await scene.store.lease_time_to_live(lease)
    assert status.remaining_ttl_s == 4 + PROMOTION_GRACE_S
    scene.clock.advance(4 + PROMOTION_GRACE_S)
    await scene.until_gone(b"k")


async def test_to_come_to_lead_takes_one_turn_whatever_the_number_of_leases(scene: Scene) -> None:
    """They are written down afterwards, in slices between which others have their turn; meanwhile each is there."""
    count = 2 * ADOPTED_AT_ONCE_MAX + 100
    grants = [LeaseGrant(lease, 10) for lease in range(1, count + 1)]
    scene.machine.apply(entries_of(grants, scene.machine.applied_index + 1))
    scene.log.depose()
    scene.log.promote()
    lessor = scene.store._leases._lessor
    assert lessor is not None
    assert len(lessor) == 0
    assert await scene.store.lease_keepalive([count, count + 1]) == [count + 1]
    sizes = set[int]()

    def is_done() -> bool:
        sizes.add(len(lessor))
        return len(lessor) == count

    await until(is_done)
    assert sizes >= {ADOPTED_AT_ONCE_MAX + 1, 2 * ADOPTED_AT_ONCE_MAX + 1}
    scene.clock.advance(10 + PROMOTION_GRACE_S)
    await until(lambda: len(scene.machine.leases) == 0)


async def test_leases_end_though_leaders_come_and_go(scene: Scene) -> None:
    """Each leader lasts six seconds, and the lease sixty: without checkpoints it would never end."""
    lease = (await scene.store.lease_grant(60)).lease
    leaders = 1
    while True:
        scene.clock.advance(6.5)
        await ticks(scene.store, 2)
        if lease not in scene.machine.leases:
            break
        scene.log.depose()
        scene.log.promote()
        leaders += 1
        assert leaders <= 60 / (6.5 - PROMOTION_GRACE_S) + 1
    assert leaders >= 60 / 6.5


async def test_a_renewal_clears_the_checkpoint_before_it_is_answered(scene: Scene) -> None:
    lease = (await scene.store.lease_grant(60)).lease
    scene.clock.advance(50)
    await ticks(scene.store, 2)
    row = scene.machine.leases.get(lease)
    assert row is not None
    assert row.remaining_ms == 10_000
    assert await scene.store.lease_keepalive([lease]) == []
    row = scene.machine.leases.get(lease)
    assert row is not None
    assert row.remaining_ms == 0
    scene.log.depose()
    scene.log.promote()
    assert (await scene.store.lease_time_to_live(lease)).remaining_ttl_s == 60 + PROMOTION_GRACE_S


async def test_a_renewal_is_not_answered_when_the_checkpoint_could_not_be_cleared(scene: Scene) -> None:
    lease = (await scene.store.lease_grant(60)).lease
    scene.clock.advance(50)
    await ticks(scene.store, 2)
    scene.log.before_append.clear()
    keepalive = asyncio.ensure_future(scene.store.lease_keepalive([lease]))  # noqa: TID251 - awaited below
    await until(lambda: scene.log.waiting_to_append == 1)
    scene.log.depose()  # the clearing entry goes to the successor, and is void there
    scene.log.before_append.set()
    with pytest.raises(NotProposed):
        await keepalive
    row = scene.machine.leases.get(lease)
    assert row is not None
    assert row.remaining_ms == 10_000


async def test_an_end_whose_outcome_was_lost_is_proposed_again_and_done_once(scene: Scene) -> None:
    lease = (await scene.store.lease_grant(10)).lease
    await scene.store.put(b"k", b"", lease=lease)
    scene.log.loses_outcomes = 2
    scene.clock.advance(11)
    await until(lambda: [isinstance(command, LeaseExpire) for command in scene.log.proposed].count(True) == 3)
    assert await scene.store.lease_keepalive([lease]) == [lease]
    assert scene.machine.revision == 3


async def test_a_keepalive_of_an_expiring_lease_waits_for_its_end(scene: Scene) -> None:
    """It is neither promised life nor called unknown while that is not decided."""
    lease = (await scene.store.lease_grant(10)).lease
    scene.log.before_append.clear()
    scene.clock.advance(11)
    await until(lambda: scene.log.waiting_to_append == 1)
    keepalive = asyncio.ensure_future(scene.store.lease_keepalive([lease]))  # noqa: TID251 - awaited below
    for _ in range(10):
        await asyncio.sleep(0)
    assert not keepalive.done()
    scene.log.before_append.set()
    assert await keepalive == [lease]


async def test_a_member_that_does_not_lead_answers_no_keepalive(scene: Scene) -> None:
    lease = (await scene.store.lease_grant(10)).lease
    scene.log.depose()
    with pytest.raises(NotProposed):
        await scene.store.lease_keepalive([lease])
    with pytest.raises(NotProposed):
        await scene.store.lease_time_to_live(lease)


async def test_a_grant_that_the_leader_has_not_applied_yet_is_not_called_unknown(scene: Scene) -> None:
    scene.log.committed_only.append(LeaseGrant(5, 10))
    assert await scene.store.lease_keepalive([5]) == []
    scene.log.committed_only.append(LeaseGrant(6, 10))
    assert (await scene.store.lease_time_to_live(6)).remaining_ttl_s == 10


async def test_many_leases_end_together(scene: Scene) -> None:
    leases = [(await scene.store.lease_grant(10)).lease for _ in range(700)]
    for number, lease in enumerate(leases):
        await scene.store.put(b"k%d" % number, b"", lease=lease)
    scene.clock.advance(11)
    async with asyncio.timeout(PATIENCE_S), scene.store.watch(b"k", b"l", start_revision=702) as watch:
        gone = 0
        async for batch in watch:
            gone += len(batch.events)
            if gone == 700:
                break
    assert len(scene.machine.leases) == 0


async def test_a_state_that_is_replaced_under_a_leader_ends_no_lease_early(scene: Scene, tmp_path: Path) -> None:
    """Only followers take snapshots over; should it happen to a leader, every lease has its whole time again."""
    lease = (await scene.store.lease_grant(10)).lease
    ahead = StateMachine(tmp_path / "ahead", map_bytes=64 * 1024 * 1024)
    scene.machine.save_snapshot(tmp_path / "present")
    ahead.restore_snapshot(tmp_path / "present")()
    ahead.apply([Entry(ahead.applied_index + 1, 1, data=encode_command(LeaseGrant(77, 5)))])
    ahead.save_snapshot(tmp_path / "later")
    ahead.close()
    scene.clock.advance(9)
    scene.machine.restore_snapshot(tmp_path / "later")()
    scene.clock.advance(5)
    await ticks(scene.store)
    assert (await scene.store.lease_time_to_live(77)).remaining_ttl_s == PROMOTION_GRACE_S
    assert await scene.store.lease_keepalive([lease, 77]) == []
    scene.clock.advance(11)
    await until(lambda: len(scene.machine.leases) == 0)
