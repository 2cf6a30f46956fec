"""The lessor: deadlines without a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_store.commands import LeaseIncarnation, LeaseRemaining
from quorate_store.leases import (
    CHECKPOINT_BATCH_MAX,
    EXPIRY_BATCH_MAX,
    LOOKED_AT_MAX,
    PROMOTION_GRACE_S,
    Inherited,
    Lessor,
    checkpoint_interval_s,
)


def lessor_with(ttl_s: int, lease: int = 1, now_s: float = 0.0) -> Lessor:
    lessor = Lessor()
    lessor.add_granted(lease, 7, ttl_s, now_s)
    return lessor


def heir_of(leases: dict[int, Inherited], now_s: float) -> Lessor:
    """None of them is adopted yet; `leases` are what the state has, and may change as it does."""
    lessor = Lessor()
    lessor.inherit(tuple(leases), leases.get, now_s)
    return lessor


def test_a_lease_lives_its_time_and_is_due_once() -> None:
    lessor = lessor_with(10)
    assert lessor.due(9.99) == []
    assert lessor.remaining_s(1, 4.0) == 6.0
    assert lessor.due(10.0) == [LeaseIncarnation(1, 7)]
    assert lessor.due(11.0) == []
    assert lessor.remaining_s(1, 12.0) == 0.0


def test_a_renewed_lease_lives_its_whole_time_again() -> None:
    lessor = lessor_with(10)
    assert lessor.renew(1, 9.0)
    assert lessor.due(18.9) == []
    assert lessor.due(19.0) == [LeaseIncarnation(1, 7)]


def test_what_does_not_exist_is_not_renewed_and_has_nothing_left() -> None:
    lessor = lessor_with(10)
    lessor.remove(1)
    lessor.remove(1)
    assert not lessor.renew(1, 0.0)
    assert lessor.remaining_s(1, 0.0) == 0.0
    assert lessor.checkpoint_to_clear(1) == 0
    lessor.checkpoint_cleared(1, 1)
    assert lessor.due(100.0) == []
    assert lessor.checkpoints_due(100.0) == []
    assert len(lessor) == 0


def test_an_expiring_lease_cannot_be_renewed_until_its_end_has_failed() -> None:
    lessor = lessor_with(10)
    due = lessor.due(10.0)
    assert lessor.is_expiring(1)
    assert not lessor.renew(1, 10.0)
    lessor.expiry_failed(due)
    assert not lessor.is_expiring(1)
    assert lessor.renew(1, 10.5)
    assert lessor.due(20.4) == []
    assert lessor.due(20.5) == due


def test_a_failed_end_is_due_again() -> None:
    lessor = lessor_with(10)
    due = lessor.due(10.0)
    lessor.expiry_failed(due)
    assert lessor.due(10.1) == due
    lessor.remove(1)
    lessor.expiry_failed(due)
    assert lessor.due(10.2) == []


def test_an_id_granted_again_is_another_lease() -> None:
    lessor = lessor_with(10)
    due = lessor.due(10.0)
    lessor.remove(1)
    lessor.add_granted(1, 8, 10, 10.0)
    lessor.expiry_failed(due)
    assert lessor.due(19.0) == []
    assert lessor.due(20.0) == [LeaseIncarnation(1, 8)]


def test_a_stall_of_the_loop_does_not_count() -> None:
    lessor = lessor_with(10)
    lessor.add_stall(5.0)
    assert lessor.due(14.9) == []
    lessor.add_granted(2, 9, 10, 14.9)
    assert lessor.due(15.0) == [LeaseIncarnation(1, 7)]
    assert lessor.remaining_s(2, 15.0) == pytest.approx(9.9)


def test_an_inherited_lease_gets_its_whole_time_and_a_grace() -> None:
    lessor = heir_of({1: Inherited(7, 10, checkpoint_ms=0)}, now_s=100.0)
    assert lessor.remaining_s(1, 100.0) == 10 + PROMOTION_GRACE_S
    assert lessor.checkpoint_to_clear(1) == 0


def test_an_inherited_lease_gets_what_its_checkpoint_left_and_a_renewal_must_clear_it() -> None:
    lessor = heir_of({1: Inherited(7, 10, checkpoint_ms=2_500)}, now_s=100.0)
    assert lessor.remaining_s(1, 100.0) == 2.5 + PROMOTION_GRACE_S
    number = lessor.checkpoint_to_clear(1)
    assert number
    assert lessor.renew(1, 101.0)
    assert lessor.remaining_s(1, 101.0) == 10.0
    lessor.checkpoint_cleared(1, number)
    assert lessor.checkpoint_to_clear(1) == 0


def test_inherited_leases_are_adopted_in_slices_and_count_from_when_the_leader_began() -> None:
    lessor = heir_of({lease: Inherited(lease, 10, 0) for lease in range(1, 6)}, now_s=100.0)
    assert len(lessor) == 0
    assert lessor.adopt(2)
    assert len(lessor) == 2
    lessor.add_stall(3.0)
    assert lessor.adopt(2)
    assert not lessor.adopt(2)
    assert not lessor.adopt(2)
    assert lessor.due(112.9 + PROMOTION_GRACE_S) == []
    assert lessor.due(113.0 + PROMOTION_GRACE_S) == [LeaseIncarnation(lease, lease) for lease in range(1, 6)]


def test_a_lease_that_ends_before_it_is_adopted_never_is_and_its_id_may_come_again() -> None:
    state = {1: Inherited(7, 10, 0), 2: Inherited(8, 10, 500)}
    lessor = heir_of(state, now_s=100.0)
    for lease in (1, 2):
        del state[lease]
        lessor.remove(lease)
    assert 1 not in lessor
    assert not lessor.renew(1, 100.0)
    state[2] = Inherited(9, 60, 0)
    lessor.add_granted(2, 9, 60, 101.0)
    assert not lessor.adopt()
    assert len(lessor) == 1
    assert lessor.remaining_s(2, 101.0) == 60.0
    assert lessor.checkpoint_to_clear(2) == 0


def test_a_lease_that_is_renewed_before_its_turn_keeps_what_the_renewal_gave_it() -> None:
    lessor = heir_of({1: Inherited(7, 10, checkpoint_ms=500)}, now_s=100.0)
    assert lessor.renew(1, 101.0)
    assert not lessor.adopt()
    assert lessor.remaining_s(1, 101.0) == 10.0
    assert lessor.due(110.9) == []


def seen_by(lessor: Lessor, call: str, lease: int, now_s: float) -> object:
    match call:
        case "renew":
            return lessor.renew(lease, now_s)
        case "look":
            return lease in lessor, lessor.remaining_s(lease, now_s)
        case "clear":
            number = lessor.checkpoint_to_clear(lease)
            lessor.checkpoint_cleared(lease, number)
            return number
        case "end":
            return lessor.remove(lease)
        case "stall":
            return lessor.add_stall(0.5)
    raise NotImplementedError(call)


@given(
    st.dictionaries(st.integers(1, 12), st.tuples(st.integers(1, 20), st.sampled_from([0, 500, 3_000])), max_size=12),
    st.lists(
        st.tuples(st.sampled_from(["renew", "look", "clear", "end", "stall", "adopt"]), st.integers(1, 12)), max_size=25
    ),
)
def test_when_a_lease_is_adopted_is_not_to_be_seen(
    inherited: dict[int, tuple[int, int]], calls: list[tuple[str, int]]
) -> None:
    """A leader that adopts in slices, and on demand, says what one says that had adopted all at once."""
    state = {lease: Inherited(lease + 100, ttl_s, left_ms) for lease, (ttl_s, left_ms) in inherited.items()}
    steady, sliced = heir_of(state, 50.0), heir_of(state, 50.0)
    assert not steady.adopt(len(state) + 1)
    now_s = 50.0
    for call, lease in calls:
        now_s += 0.7
        if call == "adopt":
            sliced.adopt(lease)
            continue
        if call == "end":
            state.pop(lease, None)
        assert seen_by(sliced, call, lease, now_s) == seen_by(steady, call, lease, now_s)
    while sliced.adopt(1):
        pass
    for later_s in (3.0, 8.0, 25.0, 60.0):
        assert sliced.checkpoints_due(now_s + later_s) == steady.checkpoints_due(now_s + later_s)
        assert sliced.due(now_s + later_s) == steady.due(now_s + later_s)


def test_a_lease_that_is_renewed_in_time_is_never_checkpointed() -> None:
    lessor = lessor_with(10)
    now_s = 0.0
    while now_s < 120.0:
        now_s += 10 / 3
        assert lessor.checkpoints_due(now_s) == []
        assert lessor.renew(1, now_s)


def test_a_lease_that_nobody_renews_is_checkpointed_while_it_lives() -> None:
    lessor = lessor_with(60)
    assert lessor.checkpoints_due(5.9) == []
    assert lessor.checkpoints_due(6.0) == [LeaseRemaining(1, 7, 54_000)]
    assert lessor.checkpoints_due(6.0) == []
    assert lessor.checkpoints_due(12.0) == [LeaseRemaining(1, 7, 48_000)]
    lessor.due(60.0)
    assert lessor.checkpoints_due(66.0) == []


def test_clearing_an_older_checkpoint_leaves_a_newer_one_to_clear() -> None:
    lessor = lessor_with(60)
    lessor.checkpoints_due(6.0)
    number = lessor.checkpoint_to_clear(1)
    lessor.checkpoints_due(12.0)
    lessor.checkpoint_cleared(1, number)
    assert lessor.checkpoint_to_clear(1) == number + 1


@pytest.mark.parametrize(("ttl_s", "interval_s"), [(1, 0.5), (2, 1.0), (10, 5.0), (50, 5.0), (60, 6.0), (3_600, 360.0)])
def test_long_leases_are_checkpointed_rarely_and_short_ones_soon(ttl_s: int, interval_s: float) -> None:
    assert checkpoint_interval_s(ttl_s) == interval_s


def test_one_turn_ends_only_so_many_and_the_next_goes_on() -> None:
    lessor = Lessor()
    for lease in range(1, EXPIRY_BATCH_MAX + 11):
        lessor.add_granted(lease, lease, 5, 0.0)
    assert len(lessor.due(5.0)) == EXPIRY_BATCH_MAX
    assert len(lessor.due(5.0)) == 10
    assert lessor.due(5.0) == []


def test_one_turn_looks_only_at_so_many() -> None:
    """Leases that were renewed are put back; 100,000 of them at once must not hold the event loop."""
    lessor = Lessor()
    for lease in range(1, LOOKED_AT_MAX + 2):
        lessor.add_granted(lease, lease, 100, 0.0)
        lessor.renew(lease, 50.0)
    lessor.add_granted(LOOKED_AT_MAX + 2, 1, 100, 0.0)
    assert lessor.due(100.0) == []
    assert lessor.due(100.0) == [LeaseIncarnation(LOOKED_AT_MAX + 2, 1)]


def test_one_entry_checkpoints_only_so_many() -> None:
    lessor = Lessor()
    for lease in range(1, CHECKPOINT_BATCH_MAX + 11):
        lessor.add_granted(lease, lease, 60, 0.0)
    assert len(lessor.checkpoints_due(6.0)) == CHECKPOINT_BATCH_MAX
    assert len(lessor.checkpoints_due(6.0)) == 10


steps = st.lists(
    st.tuples(st.sampled_from(["grant", "renew", "remove", "pass", "stall", "fail"]), st.integers(1, 3),
              st.integers(1, 8)),
    max_size=40,
)  # fmt: skip


@given(steps)
def test_no_lease_ends_early_and_none_lives_on(history: list[tuple[str, int, int]]) -> None:
    """Against the definition: a lease is due when its time has passed since it was last granted or renewed."""
    lessor, now_s, stalled_s = Lessor(), 0.0, 0.0
    deadlines: dict[int, float] = {}
    ttls: dict[int, int] = {}
    for generation, (what, lease, amount) in enumerate(history):
        at_s = now_s - stalled_s
        if what == "grant" and lease not in ttls:
            lessor.add_granted(lease, generation, amount, now_s)
            ttls[lease], deadlines[lease] = amount, at_s + amount
        elif what == "renew":
            assert lessor.renew(lease, now_s) == (lease in ttls)
            if lease in ttls:
                deadlines[lease] = at_s + ttls[lease]
        elif what == "remove":
            lessor.remove(lease)
            ttls.pop(lease, None)
            deadlines.pop(lease, None)
        elif what == "stall":
            lessor.add_stall(amount)
            stalled_s += amount
            now_s += amount
        else:
            now_s += amount
            expected = {one for one, deadline_s in deadlines.items() if deadline_s <= now_s - stalled_s}
            due = lessor.due(now_s)
            assert {one.lease for one in due} == expected
            if what == "fail":
                lessor.expiry_failed(due)
                continue
            for one in due:
                lessor.remove(one.lease)
                del ttls[one.lease], deadlines[one.lease]
