"""What limiters remember: bounded whatever the keys, never at the cost of those in use, and the same in any table."""

import itertools
import math
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_gateway.workers.shared_memory import SharedMemory
from quorate_gateway.workers.shared_table import TABLE_BYTES, SharedTables
from quorate_resilience.limiters import (
    RECORD_FLOATS_MAX,
    FixedWindow,
    LeakyBucket,
    Limiter,
    LocalTable,
    Record,
    SlidingWindow,
    Table,
    TabledTokenBucket,
    TokenBucket,
)

MILLION = 1_000_000
BYTES_A_KEY_MAX = 700
"""Of the longest record, with twelve floats."""

OVER_TABLES: dict[str, Callable[[Table | None], Limiter]] = {
    "token bucket": lambda table: TabledTokenBucket(0.5, 2, table),
    "fixed window": lambda table: FixedWindow(2, 3_600.0, table),
    "sliding window": lambda table: SlidingWindow(2, 3_600.0, 10, table),
    "leaky bucket": lambda table: LeakyBucket(0.5, 1, 10.0, table),
}


class PackedTable:
    """Records as bytes, as memory that several processes share would have them."""

    def __init__(self) -> None:
        self.keys_max = MILLION
        self.forgotten_early = 0
        self._packed: dict[bytes, bytes] = {}
        self._locked: bytes | None = None

    def __len__(self) -> int:
        return len(self._packed)

    def locked(self, key: bytes) -> AbstractContextManager[object]:
        self._locked = key
        return nullcontext()

    def get(self, key: bytes) -> Record | None:
        assert self._locked == key
        packed = self._packed.get(key)
        return None if packed is None else struct.unpack(f"<{len(packed) // 8}d", packed)

    def put(self, key: bytes, record: Sequence[float], expires_s: float, now_s: float) -> None:
        assert self._locked == key
        assert 1 <= len(record) <= RECORD_FLOATS_MAX
        if expires_s <= now_s:
            self._packed.pop(key, None)  # at once: nobody may count on what has expired
        else:
            self._packed[key] = struct.pack(f"<{len(record)}d", *record)

    def items(self) -> Iterator[tuple[bytes, Record]]:
        for key, packed in self._packed.items():
            yield key, struct.unpack(f"<{len(packed) // 8}d", packed)


STEPS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 2.0, 8.0, 3_600.0]), st.sampled_from([b"a", b"b"]), st.integers(0, 3)),
    max_size=60,
)


@pytest.fixture(scope="module")
def shared_tables() -> Iterator[Iterator[Table]]:
    """One after the other, each empty, all in one memory as processes share it."""
    memory = SharedMemory.create(TABLE_BYTES)
    tables = SharedTables(memory)
    yield (tables(b"limit %d" % number) for number in itertools.count())
    memory.close()


@pytest.mark.parametrize("name", OVER_TABLES)
@given(steps=STEPS)
def test_decisions_are_the_same_in_memory_that_processes_share(
    shared_tables: Iterator[Table], name: str, steps: list[tuple[float, bytes, int]]
) -> None:
    table = next(shared_tables)
    one, other, now_s = OVER_TABLES[name](LocalTable()), OVER_TABLES[name](table), 50.0
    for passed_s, key, cost in steps:
        now_s += passed_s
        assert one.decide(key, now_s, cost) == other.decide(key, now_s, cost)
        # The other one may still have what has expired.
        assert {*one.emptiest(now_s, 5)} <= {*other.emptiest(now_s, 5)}


@pytest.mark.parametrize("name", OVER_TABLES)
@given(steps=STEPS)
def test_decisions_are_the_same_in_any_table(name: str, steps: list[tuple[float, bytes, int]]) -> None:
    one, other, now_s = OVER_TABLES[name](LocalTable()), OVER_TABLES[name](PackedTable()), 50.0
    for passed_s, key, cost in steps:
        now_s += passed_s
        assert one.decide(key, now_s, cost) == other.decide(key, now_s, cost)


@given(
    st.floats(0.001, 1_000), st.integers(1, 20), st.lists(st.tuples(st.floats(-1, 5), st.integers(0, 5)), max_size=60)
)
def test_both_token_buckets_decide_alike(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    fast, tabled, now_s = TokenBucket(rate, burst), TabledTokenBucket(rate, burst), 100.0
    for passed_s, cost in steps:
        now_s += passed_s
        assert tabled.decide(b"", now_s, cost) == fast.decide(b"", now_s, cost)
        assert tabled.emptiest(now_s, 1) == fast.emptiest(now_s, 1)


def test_a_tabled_token_bucket_checks_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="rate_per_s"):
        TabledTokenBucket(math.nan, 1)
    with pytest.raises(ValueError, match="burst"):
        TabledTokenBucket(1, 0)


@pytest.mark.untraced
@pytest.mark.parametrize("name", ["fast token bucket", *OVER_TABLES])
def test_of_a_million_keys_those_in_use_are_not_forgotten(name: str) -> None:
    """Each key has used its limit up, so that one which were forgotten would be admitted again."""
    keys_max, in_use = 2_000, [b"in use %d" % number for number in range(100)]
    keys = MILLION if name == "fast token bucket" else MILLION // 10
    limiter: Limiter
    if name == "fast token bucket":
        limiter = TokenBucket(0.001, 2, keys_max)
    else:
        limiter = OVER_TABLES[name](LocalTable(keys_max))
    for key in in_use:
        while limiter.decide(key, 0.0).admitted:
            pass
    again = 0
    for number in range(keys):
        limiter.decide(b"%d" % number, 0.001)
        if number % 10 == 0:
            again += limiter.decide(in_use[number // 10 % len(in_use)], 0.001).admitted
    assert again == 0
    assert len(limiter) <= keys_max
    assert limiter.forgotten_early >= keys + len(in_use) - keys_max


@pytest.mark.untraced
@pytest.mark.parametrize(
    ("make", "bytes_max"),
    [
        (lambda keys_max: TokenBucket(0.001, 10, keys_max), 400),
        (lambda keys_max: FixedWindow(10, 3_600.0, LocalTable(keys_max)), 450),
        (lambda keys_max: SlidingWindow(10, 3_600.0, 10, LocalTable(keys_max)), BYTES_A_KEY_MAX),
    ],
    ids=["token bucket", "fixed window", "sliding window"],
)
def test_keys_over_the_bound_need_no_more_memory(make: Callable[[int], Limiter], bytes_max: int) -> None:
    keys_max = 10_000
    tracemalloc.start()
    try:
        limiter = make(keys_max)
        for number in range(3 * keys_max):
            limiter.decide(b"198.51.100.%d" % number, 1.0)
        full, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(limiter) == keys_max
    assert full <= keys_max * bytes_max


def test_a_key_whose_record_has_expired_is_forgotten() -> None:
    limiter = FixedWindow(1, 10.0)
    for number in range(10):
        limiter.decide(b"old %d" % number, 0.0)
    assert len(limiter) == 10
    for number in range(5):
        limiter.decide(b"new %d" % number, 10.0)
    assert len(limiter) == 5
    assert limiter.forgotten_early == 0


def test_an_expired_record_is_forgotten_before_an_older_one_that_is_not() -> None:
    table = LocalTable(keys_max=3)
    table.put(b"old", (1.0,), 100.0, 0.0)
    table.put(b"expired", (2.0,), 5.0, 0.0)
    table.put(b"newer", (3.0,), 100.0, 0.0)
    table.put(b"new", (4.0,), 100.0, 6.0)
    assert dict(table.items()) == {b"old": (1.0,), b"newer": (3.0,), b"new": (4.0,)}
    assert table.forgotten_early == 0
    table.put(b"old", (1.5,), 100.0, 6.0)
    table.put(b"newest", (5.0,), 100.0, 6.0)
    assert set(dict(table.items())) == {b"old", b"new", b"newest"}
    assert table.forgotten_early == 1


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 30)), max_size=300))
def test_no_more_keys_than_the_limit_are_remembered(steps: list[tuple[int, float]]) -> None:
    limiter, now_s = FixedWindow(2, 60.0, LocalTable(keys_max=8)), 0.0
    for key, passed_s in steps:
        now_s += passed_s
        limiter.decide(b"%d" % key, now_s)
        assert len(limiter) <= 8


def test_a_cost_of_nothing_and_what_never_fits_leave_no_record() -> None:
    for make in OVER_TABLES.values():
        limiter = make(None)
        limiter.decide(b"a", 0.0, cost=0)
        assert not limiter.decide(b"b", 0.0, cost=50).admitted
        assert len(limiter) == 0


def test_a_table_without_room_for_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="keys_max"):
        LocalTable(0)
