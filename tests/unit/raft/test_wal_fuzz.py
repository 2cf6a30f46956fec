"""Fuzzing of the log's reader: whatever happens to the files, the log opens with exactly what it held once, and with
all that is left whole of it, or it is refused by name. It never crashes, hangs, or asks for memory that files only
claim to need.

A history of batches, restarts and new bases is laid down by the log itself; then its files are damaged. A damage of the
last records, and the loss of the last segments, cannot be told from what a crash does to what was never acknowledged
(`wal` says why); then a shorter log may come back. But no record that survives may ever be missing from it.
"""

import itertools
import random
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from quorate_core.errors import SettingsError
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, HardState, SnapshotMeta
from quorate_raft.runtime.disk import FileDisk
from quorate_raft.runtime.wal import Recovered, Wal, WalIdentity, open_wal
from quorate_raft.runtime.wal_records import PREFIX_BYTES

IDENTITY = WalIdentity("cluster-1", "node-1")
BOOTSTRAP = Membership.of_voters({"node-1": "host-1:1"})
SEGMENT_BYTES = 700
HISTORIES = 12
STEPS = 14
MEMORY_BYTES_MAX = 2 * 1024 * 1024
"""Far above what these logs need, far below what a damaged length may claim."""

FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Record:
    """One of the files' records, and after which step it was there."""

    name: str
    begin: int
    data: bytes
    step: int


@dataclass
class History:
    """What the log held after each step, and the files at its end."""

    states: list[Recovered] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def take_stock(self, folder: Path, state: Recovered) -> None:
        # A header alone says nothing new but a base: what comes with a segment that was just begun is in its batch.
        header_step = len(self.states) - (not self.states or state.base == self.states[-1].base)
        self.states.append(state)
        self.files = {path.name: path.read_bytes() for path in sorted(folder.glob("wal-*"))}
        before = {(record.name, record.begin): record for record in self.records}
        self.records = [
            before.get((name, begin)) or Record(name, begin, data, len(self.states) - 1 if begin else header_step)
            for name, content in self.files.items()
            for begin, data in records_of(content)
        ]

    def last_surviving_step(self, files: dict[str, bytes]) -> int:
        survivors = [record.step for record in self.records if record.data == _part(files, record)]
        return max(survivors, default=0)


def _part(files: dict[str, bytes], record: Record) -> bytes:
    return files.get(record.name, b"")[record.begin : record.begin + len(record.data)]


def records_of(content: bytes) -> list[tuple[int, bytes]]:
    found, begin = [], 0
    while content.startswith(b"QWAL", begin):
        end = begin + PREFIX_BYTES + int.from_bytes(content[begin + 4 : begin + 8], "little")
        found.append((begin, content[begin:end]))
        begin = end
    return found


def open_(disk: FileDisk, applied_index: int = 0) -> tuple[Wal, Recovered]:
    return open_wal(disk, IDENTITY, random.Random(1).randrange, SEGMENT_BYTES, BOOTSTRAP, applied_index)


def recover(folder: Path, applied_index: int = 0) -> Recovered:
    with FileDisk(folder) as disk:
        wal, recovered = open_(disk, applied_index)
        wal.close()
        return recovered


def essence(recovered: Recovered) -> tuple[HardState, SnapshotMeta, list[Entry]]:
    """All but how far back entries are kept for slow followers."""
    after_base = [entry for entry in recovered.entries if entry.index > recovered.base.index]
    return recovered.hard_state, recovered.base, after_base


@cache
def history_of(seed: int) -> History:
    choose, history = random.Random(seed), History()
    folder = Path(mkdtemp(prefix="wal-fuzz-"))
    try:
        with FileDisk(folder) as disk:
            wal, state = open_(disk)
            history.take_stock(folder, state)
            for step in range(1, STEPS):
                state = (_rebase if choose.random() < 0.2 else _append)(wal, state, step, choose)
                history.take_stock(folder, state)
                if choose.random() < 0.2:
                    wal.close()
                    wal, _ = open_(disk)
            wal.close()
    finally:
        shutil.rmtree(folder)
    return history


def _append(wal: Wal, state: Recovered, step: int, choose: random.Random) -> Recovered:
    hard_state = HardState(step, "node-1", 0) if choose.random() < 0.5 else None
    first = max(state.base.index + 1, state.last_index + 1 - choose.choice([0, 0, 0, 1, 3]))
    data = bytes(choose.randrange(60)) if choose.random() < 0.3 else choose.randbytes(choose.randrange(60))
    count = choose.randrange(4 if hard_state else 3) + (0 if hard_state else 1)
    batch = [Entry(first + offset, step, data=data) for offset in range(count)]
    wal.append(hard_state, batch)
    kept = [entry for entry in state.entries if entry.index < first] if batch else state.entries
    return Recovered(hard_state or state.hard_state, state.base, kept + batch, 0)


def _rebase(wal: Wal, state: Recovered, step: int, choose: random.Random) -> Recovered:
    if choose.random() < 0.3:
        base = SnapshotMeta(state.last_index + 5, step, BOOTSTRAP)
        wal.rebase(base, base.index + 1)
        return Recovered(state.hard_state, base, [], 0)
    index = choose.randint(state.base.index, state.last_index)
    base = SnapshotMeta(index, state.term_at(index) or 0, BOOTSTRAP)
    wal.rebase(base, max(1, index - choose.randrange(4)))
    return Recovered(state.hard_state, base, state.entries, 0)


def recover_damaged(folder: Path, files: dict[str, bytes], applied_index: int = 0) -> Recovered | str:
    """What comes back, or why nothing does. Any other error, or a thirst for memory, fails the test."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    tracemalloc.start()
    try:
        found: Recovered | str = recover(folder, applied_index)
    except SettingsError as error:
        found = error.detail
        assert "wal-" in found, "the file is named"
        assert {path.name: path.read_bytes() for path in folder.glob("wal-*")} == files, (
            "what is refused stays as it is"
        )
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < MEMORY_BYTES_MAX
    return found


Damage = Callable[[dict[str, bytes]], None]


def _name(files: dict[str, bytes], choice: int) -> str:
    return sorted(files)[choice % len(files)]


def _place(content: bytes, choice: int) -> int:
    """Anywhere in what was written, or right behind it."""
    return choice % (len(content.rstrip(b"\0")) + 20)


def write_over(file: int, place: int, data: bytes) -> Damage:
    def damage(files: dict[str, bytes]) -> None:
        content = files[(name := _name(files, file))]
        offset = _place(content, place)
        files[name] = content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]

    return damage


def flip(file: int, place: int, bit: int) -> Damage:
    def damage(files: dict[str, bytes]) -> None:
        content = bytearray(files[(name := _name(files, file))].ljust(1, b"\0"))
        content[_place(content, place) % len(content)] ^= 1 << bit
        files[name] = bytes(content)

    return damage


def cut(file: int, place: int) -> Damage:
    def damage(files: dict[str, bytes]) -> None:
        content = files[(name := _name(files, file))]
        files[name] = content[: _place(content, place)]

    return damage


def copy_record(source: int, file: int, place: int) -> Damage:
    """A record of the log, somewhere else."""

    def damage(files: dict[str, bytes]) -> None:
        records = [record for content in files.values() for record in records_of(content)]
        if records:
            write_over(file, place, records[source % len(records)][1])(files)

    return damage


def cut_out_record(source: int) -> Damage:
    """What comes after it moves up."""

    def damage(files: dict[str, bytes]) -> None:
        records = [(name, *record) for name, content in files.items() for record in records_of(content)]
        if records:
            name, begin, data = records[source % len(records)]
            files[name] = files[name][:begin] + files[name][begin + len(data) :]

    return damage


def remove(file: int) -> Damage:
    def damage(files: dict[str, bytes]) -> None:
        if len(files) > 1:
            del files[_name(files, file)]

    return damage


def exchange(one: int, other: int) -> Damage:
    def damage(files: dict[str, bytes]) -> None:
        a, b = _name(files, one), _name(files, other)
        files[a], files[b] = files[b], files[a]

    return damage


def duplicate(one: int, sequence: int) -> Damage:
    def damage(files: dict[str, bytes]) -> None:
        files[f"wal-{sequence:016d}.log"] = files[_name(files, one)]

    return damage


numbers = st.integers(0, 10_000)
rubbish = (
    st.binary(max_size=80) | st.integers(1, 900).map(bytes) | st.integers(1, 60).map(lambda count: b"QWAL" * count)
)
tail_damages = (
    st.builds(write_over, numbers, numbers, rubbish)
    | st.builds(flip, numbers, numbers, st.integers(0, 7))
    | st.builds(cut, numbers, numbers)
)
damages = (
    tail_damages
    | st.builds(copy_record, numbers, numbers, numbers)
    | st.builds(cut_out_record, numbers)
    | st.builds(remove, numbers)
    | st.builds(exchange, numbers, numbers)
    | st.builds(duplicate, numbers, st.integers(1, 20))
)


@FUZZ
@given(seed=st.integers(0, HISTORIES - 1), some=st.lists(damages, min_size=1, max_size=3))
def test_a_damaged_log_is_refused_or_holds_all_that_survives(
    tmp_path_factory: pytest.TempPathFactory, seed: int, some: Sequence[Damage]
) -> None:
    history, folder = history_of(seed), tmp_path_factory.getbasetemp() / "damaged"
    files = dict(history.files)
    for damage in some:
        damage(files)
    found = recover_damaged(folder, files)
    if isinstance(found, str):
        assert files != history.files
        return
    possible = history.states[history.last_surviving_step(files) :]
    assert essence(found) in [essence(state) for state in possible]
    assert recover(folder) == Recovered(found.hard_state, found.base, found.entries, 0), "what was cut stays cut"
    last = history.states[-1]
    if found.last_index < last.last_index:
        again = recover_damaged(folder, files, applied_index=last.last_index)
        assert isinstance(again, str), "what was applied shows that it is missing"


@FUZZ
@given(seed=st.integers(0, HISTORIES - 1), some=st.lists(tail_damages, min_size=1, max_size=3), size=numbers)
def test_whatever_a_crash_does_to_the_last_append_the_log_opens_with_all_before_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int, some: Sequence[Damage], size: int
) -> None:
    """Only what was never acknowledged is touched, so nothing is refused, and nothing that was acknowledged is lost."""
    history, folder = history_of(seed), tmp_path_factory.getbasetemp() / "torn"
    record = history.records[-1]
    assume(record.begin > 0)  # a new base, which is one rename and cannot be torn
    tail = {record.name: history.files[record.name][record.begin :]}
    for damage in some:
        damage(tail)
    files = {**history.files, record.name: history.files[record.name][: record.begin] + tail[record.name]}
    found = recover_damaged(folder, files)
    assert isinstance(found, Recovered), found
    is_whole = record.data == _part(files, record)
    before = [state for step, state in enumerate(history.states) if step < record.step][-1]
    assert essence(found) == essence(history.states[-1] if is_whole else before)
    assert is_whole or (found.cut_bytes > 0) == bool(tail[record.name].strip(b"\0"))
    with FileDisk(folder) as disk:
        wal, _ = open_(disk)
        following = Entry(found.last_index + 1, STEPS, data=bytes(size % 500))
        wal.append(None, [following])
        wal.close()
    assert essence(recover(folder))[2] == [*essence(found)[2], following]


def test_the_histories_are_worth_the_name() -> None:
    """They have several segments, overwritten entries, bases that were taken and ones that were installed."""
    histories = [history_of(seed) for seed in range(HISTORIES)]
    assert max(len(history.files) for history in histories) > 3
    steps = [pair for history in histories for pair in itertools.pairwise(history.states)]
    assert any(after.last_index < before.last_index for before, after in steps), "overwritten"
    assert any(after.base.index > before.last_index for before, after in steps), "installed"
    assert any(before.base.index < after.base.index <= before.last_index for before, after in steps), "taken"
    assert any(min(history.files) > f"wal-{1:016d}.log" for history in histories)
    for history in histories:
        assert len(history.states) == STEPS


def test_an_undamaged_log_comes_back_whole(tmp_path: Path) -> None:
    for seed in range(HISTORIES):
        history = history_of(seed)
        found = recover_damaged(tmp_path / "log", history.files, history.states[-1].last_index)
        assert isinstance(found, Recovered)
        assert essence(found) == essence(history.states[-1])
