"""The last good copy on disk: written when something has changed, and again when it is gone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quorate_core.tasks import TaskOwner
from quorate_sdk import cache
from quorate_sdk.cache import CacheFile

CHECK_INTERVAL_S = 0.02
WITHIN_S = 10.0


class Writes:
    """Counts how often a cache was asked for what to write, and lets a test wait for the next time."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[None] = asyncio.Queue()

    def encode(self) -> bytes:
        self._asked.put_nowait(None)
        return b"content"

    async def next(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            await self._asked.get()

    @property
    def unseen(self) -> int:
        return self._asked.qsize()


@pytest.fixture
async def tasks() -> AsyncIterator[TaskOwner]:
    failures: list[BaseException] = []
    async with TaskOwner("test", failures.append) as owner:
        yield owner
    assert failures == []


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_DEBOUNCE_S", 0.0)


async def test_a_file_that_was_removed_is_written_again_though_nothing_changes(
    tmp_path: Path, tasks: TaskOwner
) -> None:
    path, writes = tmp_path / "cache.json", Writes()
    file = CacheFile(path, writes.encode, CHECK_INTERVAL_S)
    file.mark_changed()
    await file.flush()
    await writes.next()
    path.unlink()
    keeping = tasks.start(file.keep_written(), "cache")
    await writes.next()
    keeping.cancel()
    await asyncio.wait({keeping})
    file.mark_changed()
    await file.flush()
    assert path.read_bytes() == b"content"


async def test_a_copy_that_was_read_and_then_removed_is_written_again(tmp_path: Path, tasks: TaskOwner) -> None:
    path, writes = tmp_path / "cache.json", Writes()
    path.write_bytes(b"content")
    file = CacheFile(path, writes.encode, CHECK_INTERVAL_S)
    assert file.read() is not None
    path.unlink()
    tasks.start(file.keep_written(), "cache")
    await writes.next()


async def test_what_could_not_be_written_is_tried_again(tmp_path: Path, tasks: TaskOwner) -> None:
    path, writes = tmp_path / "cache.json", Writes()
    path.mkdir()
    file = CacheFile(path, writes.encode, CHECK_INTERVAL_S)
    file.mark_changed()
    await file.flush()
    await writes.next()
    tasks.start(file.keep_written(), "cache")
    await writes.next()


async def test_a_cache_that_has_nothing_yet_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: asyncio.Queue[None] = asyncio.Queue()
    writes = Writes()
    file = CacheFile(tmp_path / "cache.json", writes.encode, CHECK_INTERVAL_S)
    flush = file.flush

    async def flush_seen() -> None:
        await flush()
        checks.put_nowait(None)

    monkeypatch.setattr(file, "flush", flush_seen)
    async with TaskOwner("test") as tasks, asyncio.timeout(WITHIN_S):
        tasks.start(file.keep_written(), "cache")
        for _ in range(3):
            await checks.get()
    assert writes.unseen == 0
    assert not (tmp_path / "cache.json").exists()
