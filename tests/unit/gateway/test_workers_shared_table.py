"""The table in shared memory: one table for all processes, exact, bounded, and whole after any of them was killed."""

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import InvariantViolation
from quorate_gateway.workers.shared_memory import SharedMemory
from quorate_gateway.workers.shared_table import (
    COUNTED_S,
    KEY_BYTES_MAX,
    LOCK_WAIT_S_MAX,
    SLOTS,
    STUCK_S,
    TABLE_BYTES,
    SharedTable,
    SharedTables,
)
from quorate_resilience.limiters import RECORD_FLOATS_MAX, FixedWindow
from support.table_writers import FAR_S, IDENTITY, KEY, NEW, OLD, WHOLE_FLOATS

PROGRAM = Path(__file__).resolve().parents[2] / "support" / "table_writers.py"
WAIT_S_MAX = 30.0
FIRST_GROUP = 0
BLOCKS_A_PAGE = os.sysconf("SC_PAGE_SIZE") // 512


@pytest.fixture(scope="module")
def memory() -> Iterator[SharedMemory]:
    """One for the whole module: each test has limits of its own in it."""
    created = SharedMemory.create(TABLE_BYTES)
    yield created
    created.close()


@pytest.fixture
def own_memory() -> Iterator[SharedMemory]:
    created = SharedMemory.create(TABLE_BYTES)
    yield created
    created.close()


@pytest.fixture(scope="module")
def identities() -> Iterator[bytes]:
    return (b"limit %d" % number for number in itertools.count())


@contextmanager
def writer(memory: SharedMemory, what: str, count: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A process that has the memory; what is left of it at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), what, str(memory.descriptor), str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(memory.descriptor,),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def put(table: SharedTable, key: bytes, record: Sequence[float], expires_s: float = FAR_S, now_s: float = 0.0) -> None:
    with table.locked(key):
        table.put(key, record, expires_s, now_s)


def get(table: SharedTable, key: bytes) -> Sequence[float] | None:
    with table.locked(key):
        return table.get(key)


RECORDS = st.lists(st.floats(allow_nan=False), min_size=1, max_size=RECORD_FLOATS_MAX).map(tuple)
KEYS = st.binary(max_size=2) | st.binary(min_size=KEY_BYTES_MAX, max_size=KEY_BYTES_MAX)


@given(st.lists(st.tuples(st.integers(0, 1), KEYS, RECORDS), max_size=40))
def test_it_remembers_for_each_limit_and_key_what_was_put_last(
    memory: SharedMemory, identities: Iterator[bytes], steps: list[tuple[int, bytes, tuple[float, ...]]]
) -> None:
    names = [next(identities), next(identities)]
    writing, reading = SharedTables(memory), SharedTables(memory)
    model: dict[tuple[int, bytes], tuple[float, ...]] = {}
    for limit, key, record in steps:
        put(writing(names[limit]), key, record)
        model[limit, key] = record
        assert get(reading(names[limit]), key) == record
    for limit, name in enumerate(names):
        table = reading(name)
        assert dict(table.items()) == {key: record for (of, key), record in model.items() if of == limit}
        assert len(table) == sum(of == limit for of, _ in model)
        assert table.forgotten_early == 0


def test_a_record_or_key_that_has_no_room_is_a_defect(memory: SharedMemory) -> None:
    table = SharedTables(memory)(b"too much")
    for key, record in ((KEY, ()), (KEY, (1.0,) * (RECORD_FLOATS_MAX + 1)), (b"k" * (KEY_BYTES_MAX + 1), (1.0,))):
        with pytest.raises(InvariantViolation), table.locked(key):
            table.put(key, record, FAR_S, 0.0)
    assert len(table) == 0


def crowd(table: SharedTable, count: int) -> list[bytes]:
    """So many keys of one group, which only who knows the memory's secret can find."""
    keys = (b"%d" % number for number in itertools.count())
    return list(itertools.islice((key for key in keys if table.group_of(key) == FIRST_GROUP), count))


def test_in_a_full_group_what_has_expired_goes_first_and_then_the_longest_unused(own_memory: SharedMemory) -> None:
    table = SharedTables(own_memory)(b"crowded")
    keys = crowd(table, SLOTS + 4)
    for now, key in enumerate(keys[:SLOTS]):
        put(table, key, (float(now),), 5.0 if now == SLOTS - 1 else 100.0, float(now) / 10)
    put(table, keys[SLOTS], (50.0,), 100.0, 6.0)
    assert keys[SLOTS - 1] not in dict(table.items())
    assert table.forgotten_early == 0
    put(table, keys[0], (0.5,), 100.0, 7.0)  # is in use
    put(table, keys[SLOTS + 1], (51.0,), 100.0, 8.0)
    assert table.forgotten_early == 1
    assert dict(table.items()).keys() == {*keys[: SLOTS + 2]} - {keys[1], keys[SLOTS - 1]}


def test_what_never_expires_outlives_what_does(own_memory: SharedMemory) -> None:
    """So are connections counted, and not forgotten for the sake of somebody's requests."""
    tables = SharedTables(own_memory)
    held, counted = tables(b"connections"), tables(b"requests")
    mine = crowd(held, 2)
    put(held, mine[0], (1.0,), math.inf, 0.0)
    for now, key in enumerate(crowd(counted, SLOTS + 4)):
        put(counted, key, (1.0,), FAR_S, 1.0 + now)
    assert get(held, mine[0]) == (1.0,)
    assert counted.forgotten_early == 5


def test_a_key_in_use_is_not_forgotten_among_many_that_are_not(own_memory: SharedMemory) -> None:
    """It has used its limit up: if it were forgotten, it would be admitted again."""
    table = SharedTables(own_memory)(b"many")
    limiter = FixedWindow(1, 3_600.0, table)
    in_use, *others = crowd(table, 2 * SLOTS)
    assert limiter.decide(in_use, 1.0).admitted
    for number, key in enumerate(others):
        assert limiter.decide(key, 2.0 + number).admitted
        assert not limiter.decide(in_use, 2.0 + number).admitted
    assert len(limiter) == SLOTS
    assert table.forgotten_early == SLOTS


def test_counting_and_listing_touch_no_page_that_nobody_uses(own_memory: SharedMemory) -> None:
    """To read a page of such memory is to make it: a look at everything would cost a hundred megabytes."""
    tables = SharedTables(own_memory)
    table = tables(b"few")
    for number in range(10):
        put(table, b"%d" % number, (1.0,))
    memory = Path(f"/proc/self/fd/{own_memory.descriptor}")
    blocks = memory.stat().st_blocks
    assert len(table) == 10
    assert len(dict(table.items())) == 10
    # A group may reach into a second page that its one record has not touched.
    assert memory.stat().st_blocks - blocks <= 10 * BLOCKS_A_PAGE


def test_keys_are_counted_anew_after_a_while(own_memory: SharedMemory) -> None:
    now_s = 0.0
    tables = SharedTables(own_memory, lambda: now_s)
    table = tables(b"counted")
    put(table, b"a", (1.0,))
    assert len(table) == 1
    put(table, b"b", (1.0,))
    assert len(table) == 1
    now_s = COUNTED_S
    assert len(table) == 2


# Several processes.


def test_what_several_processes_add_is_exactly_the_sum(own_memory: SharedMemory) -> None:
    """They begin together, and take longer than it takes to begin: without the locks, many would be lost."""
    count = 20_000
    with (
        writer(own_memory, "count", count) as one,
        writer(own_memory, "count", count) as other,
        writer(own_memory, "count", count) as third,
    ):
        processes = (one, other, third)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            assert process.communicate(timeout=WAIT_S_MAX)[0] == "done\n"
    assert get(SharedTables(own_memory)(IDENTITY), KEY) == (3.0 * count,)


def test_a_process_killed_while_it_writes_leaves_a_whole_record_and_no_lock(own_memory: SharedMemory) -> None:
    tables = SharedTables(own_memory)
    table = tables(IDENTITY)
    for _ in range(10):
        with writer(own_memory, "wholes") as process:
            while (record := get(table, KEY)) is None or record[0] == 0.0:
                assert process.poll() is None
            process.kill()
            process.wait(WAIT_S_MAX)
        record = get(table, KEY)
        assert record is not None
        assert record == (record[0],) * WHOLE_FLOATS
        put(table, KEY, (0.0,) * WHOLE_FLOATS)
    assert tables.locks.passed_over == 0


def test_wherever_a_write_is_cut_off_the_record_is_the_old_or_the_new_one(own_memory: SharedMemory) -> None:
    """By SIGKILL before each line of it in turn, over a record and where there is none."""
    with writer(own_memory, "crash") as process:
        said, _ = process.communicate(timeout=WAIT_S_MAX)
    found = [json.loads(line) for line in said.splitlines()]
    for former in (list(OLD), None):
        read = [(one["killed"], one["found"]) for one in found if one["former"] == former]
        assert read[-1] == (False, list(NEW))
        kinds = [record for _, record in read]
        turned = kinds.index(list(NEW))
        assert turned > SLOTS // 2, "the first lines only look"
        assert kinds == [former] * turned + [list(NEW)] * (len(kinds) - turned)
    assert {one["waited_in_vain"] for one in found} == {0}


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that each look at it moves on."""
    looks = itertools.count()
    return lambda: next(looks) * step_s


def test_the_lock_of_a_process_that_is_stopped_is_waited_for_once_and_not_for_ever(own_memory: SharedMemory) -> None:
    looks_s = LOCK_WAIT_S_MAX / 20
    tables = SharedTables(own_memory, ticking(looks_s))
    table = tables(IDENTITY)
    with writer(own_memory, "hold") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        put(table, KEY, (1.0,))
        assert tables.locks.passed_over == 1
        for _ in range(5):  # each looks at the clock once
            put(table, KEY, (2.0,))
        assert tables.locks.passed_over == 6
        assert get(table, KEY) == (2.0,)
        other = next(key for key in crowd(table, 1))
        put(table, other, (1.0,))  # of another group
        assert tables.locks.passed_over == 7
        process.kill()
        process.wait(WAIT_S_MAX)
        assert 20 * looks_s < STUCK_S
        put(table, KEY, (3.0,))
    assert tables.locks.passed_over == 7, "it was free as soon as its owner was gone"


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.floats(0, 3)), min_size=1, max_size=60))
def test_a_limit_counts_the_same_by_one_hand_and_by_three_in_turn(
    memory: SharedMemory, identities: Iterator[bytes], steps: list[tuple[bytes, float]]
) -> None:
    alone = FixedWindow(3, 4.0)
    name, now_s = next(identities), 10.0
    hands = [FixedWindow(3, 4.0, SharedTables(memory)(name)) for _ in range(3)]
    for number, (key, passed_s) in enumerate(steps):
        now_s += passed_s
        assert hands[number % 3].decide(key, now_s) == alone.decide(key, now_s)
