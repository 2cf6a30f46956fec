"""Saying what is in force: the newest question, after everything before it, to the node that has asked."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from quorate_core.errors import NotFound
from quorate_core.tasks import TaskOwner
from quorate_sdk.acknowledging import ACKNOWLEDGEMENTS_PATH, Acknowledger, InForce, at_once
from quorate_sdk.control_plane import ControlPlane, StreamEvent
from quorate_sdk.discovery import Discovery, default_subscriber

Word = tuple[str, str, dict[str, Any]]


def question(revision: int, stream: str = "7", endpoint: str = "http://node-1") -> StreamEvent:
    return StreamEvent("acknowledge", None, f'{{"revision":{revision},"stream":"{stream}"}}', endpoint)


class Told(ControlPlane):
    """Keeps what is told, in place of a node. `streams`: events of one stream, which then stays open."""

    def __init__(self, *events: StreamEvent, refuses: int = 0) -> None:
        super().__init__(["http://nobody:1"])
        self.words: asyncio.Queue[Word] = asyncio.Queue()
        self.params: Any = None
        self._events = events
        self._refuses = refuses

    async def tell(self, endpoint: str, path: str, json: Any, timeout_s: float = 0) -> None:
        self.words.put_nowait((endpoint, path, json))
        if self._refuses:
            self._refuses -= 1
            raise NotFound("no such stream")

    async def stream_events(
        self, path: str, params: Any = None, last_event_id: int | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        self.params = params
        for event in self._events:
            yield event
        await asyncio.Event().wait()


def word(revision: int, stream: str = "7") -> Word:
    said = {"subscriber": "me", "namespace": "default", "revision": revision, "stream": stream, "leaving": False}
    return "http://node-1", ACKNOWLEDGEMENTS_PATH, said


async def answers(told: Told, count: int, *questions: StreamEvent, in_force: InForce = at_once) -> list[Word]:
    acknowledger = Acknowledger(told, "me", "default", in_force)
    async with told, TaskOwner("test") as tasks, asyncio.timeout(10):
        tasks.start(acknowledger.run(), "acknowledge")
        for each in questions:
            acknowledger.take(each)
        return [await told.words.get() for _ in range(count)]


async def test_the_answer_goes_to_the_node_that_asked_and_says_which_stream_is_meant() -> None:
    assert await answers(Told(), 1, question(9)) == [word(9)]


async def test_of_several_questions_the_newest_is_answered() -> None:
    assert await answers(Told(), 1, question(9), question(10), question(11)) == [word(11)]


async def test_it_is_answered_when_it_is_in_force_and_not_before() -> None:
    told, asked, in_force = Told(), asyncio.Queue[int](), asyncio.Event()

    async def until_in_force(revision: int) -> None:
        asked.put_nowait(revision)
        await in_force.wait()

    acknowledger = Acknowledger(told, "me", "default", until_in_force)
    async with told, TaskOwner("test") as tasks, asyncio.timeout(10):
        tasks.start(acknowledger.run(), "acknowledge")
        acknowledger.take(question(9))
        assert await asked.get() == 9
        acknowledger.take(question(12))
        assert told.words.empty()
        in_force.set()
        assert [await told.words.get(), await told.words.get()] == [word(9), word(12)]


async def test_what_cannot_be_read_is_refused_or_fails_is_not_the_end() -> None:
    has_failed = asyncio.Event()

    async def fails_once(_revision: int) -> None:
        if not has_failed.is_set():
            has_failed.set()
            raise KeyError("a defect")

    torn = StreamEvent("acknowledge", None, "{", "http://node-1")
    acknowledger = Acknowledger(told := Told(refuses=1), "me", "default", fails_once)
    async with told, TaskOwner("test") as tasks, asyncio.timeout(10):
        tasks.start(acknowledger.run(), "acknowledge")
        acknowledger.take(torn)
        acknowledger.take(question(8))
        await has_failed.wait()
        for revision in (9, 10):
            acknowledger.take(question(revision))
            assert await told.words.get() == word(revision)


async def test_a_copy_acknowledges_after_it_has_taken_what_came_before() -> None:
    """And gives its name with the watch, which ends with a goodbye."""
    snapshot = StreamEvent("snapshot", 5, '{"revision":5,"services":{}}', "http://node-1")
    delta = StreamEvent("delta", 9, '{"revision":9,"changes":[]}', "http://node-1")
    told = Told(snapshot, delta, question(9))
    seen: list[int] = []

    async def look(_revision: int) -> None:
        seen.append(discovery.revision)

    async with told, asyncio.timeout(10):
        discovery = Discovery(told, subscriber="me", in_force=look)
        await discovery.start()
        assert await told.words.get() == word(9)
        assert seen == [9]
        assert ("subscriber", "me") in told.params
        await discovery.stop()
        endpoint, _, goodbye = told.words.get_nowait()
    assert (endpoint, goodbye["leaving"], goodbye["subscriber"]) == ("http://node-1", True, "me")


async def test_a_copy_that_is_away_has_nobody_to_take_leave_of() -> None:
    told = Told()
    async with told:
        discovery = Discovery(told)
        await discovery.start()
        await discovery.stop()
    assert told.words.empty()


def test_each_copy_in_each_process_has_a_name_of_its_own() -> None:
    assert default_subscriber() != default_subscriber()
