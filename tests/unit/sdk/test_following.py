"""A follower goes on whatever happens, and never looks connected when it is not."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from quorate_core.errors import Unavailable
from quorate_core.tasks import TaskOwner
from quorate_sdk.config_watcher import ConfigWatcher
from quorate_sdk.control_plane import ControlPlane, StreamEvent
from quorate_sdk.discovery import Discovery
from quorate_sdk.following import BOOKMARK_SILENCE_S_MAX, EventFollower


class Copied:
    """The revisions that were applied. `fails_at`: it fails there once, as a defect would."""

    def __init__(self, fails_at: int = 0) -> None:
        self.revision = 0
        self.fails_at = fails_at
        self.seen: list[int] = []

    def apply(self, event: StreamEvent) -> None:
        revision = int(event.data)
        if revision == self.fails_at:
            self.fails_at = 0
            raise KeyError("a defect")
        self.revision = revision
        self.seen.append(revision)


class ScriptedStreams(ControlPlane):
    """Each stream is a script of revisions, or errors to raise; after the last one a stream stays open."""

    def __init__(self, *streams: list[int | Exception]) -> None:
        super().__init__(["http://nobody:1"])
        self._streams = list(streams)
        self.resumed_from: list[int | None] = []
        self.all_told = asyncio.Event()

    async def stream_events(
        self, path: str, params: Any = None, last_event_id: int | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        self.resumed_from.append(last_event_id)
        for step in self._streams.pop(0):
            if isinstance(step, Exception):
                raise step
            yield StreamEvent("delta", step, str(step))
        if not self._streams:
            self.all_told.set()
            await asyncio.Event().wait()


async def followed(streams: ScriptedStreams, copied: Copied) -> EventFollower:
    """A follower that was ended once all was told."""
    follower = EventFollower("test", streams, "/watch", dict, copied)
    async with streams, TaskOwner("test") as tasks, asyncio.timeout(10):
        tasks.start(follower.run(), "follow")
        await streams.all_told.wait()
        assert follower.connected
    return follower


async def test_an_unexpected_exception_of_the_stream_is_a_lost_stream() -> None:
    streams, copied = ScriptedStreams([1, RuntimeError("a defect of a library")], [2]), Copied()
    await followed(streams, copied)
    assert copied.seen == [1, 2]
    assert streams.resumed_from == [None, None], "whatever state it has left, a snapshot puts it right"


async def test_an_unexpected_exception_of_the_copy_is_a_lost_stream() -> None:
    streams, copied = ScriptedStreams([1, 2], [3]), Copied(fails_at=2)
    await followed(streams, copied)
    assert copied.seen == [1, 3]


async def test_an_expected_failure_resumes_where_it_was() -> None:
    streams, copied = ScriptedStreams([1, Unavailable("gone")], [2]), Copied()
    await followed(streams, copied)
    assert streams.resumed_from == [None, 1]


async def test_a_follower_that_was_ended_is_not_connected_and_grows_stale() -> None:
    follower = await followed(ScriptedStreams([1]), Copied())
    assert not follower.connected
    assert follower.stale_s > 0


async def test_an_answer_that_cannot_be_decoded_is_a_node_that_does_not_answer() -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\ncontent-length: 4"
        writer.write(head + b"\r\n\r\nnope")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, ControlPlane([url]) as control_plane, asyncio.timeout(10):
        with pytest.raises(Unavailable, match=url):
            await control_plane.request("GET", "/", timeout_s=0.2)
        with pytest.raises(Unavailable, match=url):
            await anext(control_plane.stream_events("/"))


async def test_silence_of_a_node_is_noticed_by_both_followers() -> None:
    async with ControlPlane(["http://nobody:1"]) as nobody:
        for follower in (Discovery(nobody)._follower, ConfigWatcher(nobody)._follower):
            assert follower._event_silence_s_max == BOOKMARK_SILENCE_S_MAX
