"""One node's streams and the questions that wait for them: who is pending, departed, leaving or nobody's concern."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from quorate_core.clock import ManualClock
from quorate_core.errors import NotFound, TooManyRequests
from quorate_core.tasks import TaskOwner
from quorate_registry.acknowledgements import QUESTIONS_MAX, RETURN_S, Acknowledgements
from quorate_registry.catalog import Catalog, Interest
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import encode_record, record_of
from quorate_registry.watch import Subscription, Subscriptions
from quorate_sdk.wire import Acknowledgement, InstanceSpec
from support.registry_server import WAIT_S_MAX
from support.store_local import local_store

ALL = Interest("default")
ORDER = Interest("default", frozenset({"order"}))
LONG_S = 50.0


class Node:
    """A node's parts around a catalog that has `revision`; its streams are opened by hand."""

    def __init__(self, catalog: Catalog, feed: CatalogFeed, watchers: Subscriptions, tasks: TaskOwner) -> None:
        self.clock = ManualClock()
        self.catalog = catalog
        self.watchers = watchers
        self.acknowledgements = Acknowledgements("node-1", catalog, feed, watchers, self.clock)
        self._tasks = tasks

    @property
    def revision(self) -> int:
        return self.catalog.revision

    @contextmanager
    def stream(self, subscriber: str = "", interest: Interest = ALL, address: str = "127.0.0.1:7") -> Any:
        with self.watchers.subscribed(interest, subscriber, address) as subscription:
            yield subscription

    def say(self, of: Subscription, **word: Any) -> None:
        whole = {"subscriber": of.subscriber, "revision": self.revision, "stream": of.token, **word}
        self.acknowledgements.take(Acknowledgement(**whole))

    async def ask(self, wait_s: float = 0.0, service: str = "order") -> dict[str, Any]:
        return await self.acknowledgements.answer("default", service, self.revision, wait_s)

    def asking(self, wait_s: float = LONG_S) -> "asyncio.Task[dict[str, Any]]":
        return self._tasks.start(self.ask(wait_s), "question")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(local_store(tmp_path))
        await store.put(b"quorate/registry-notes/default/order", b"{}")
        tasks = await stack.enter_async_context(TaskOwner("test"))
        catalog, watchers = Catalog(), Subscriptions()
        feed = CatalogFeed(store, catalog, watchers, tasks)
        feed.start()
        async with asyncio.timeout(WAIT_S_MAX):
            await feed.loaded.wait()
            yield Node(catalog, feed, watchers, tasks)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [each["subscriber"] for each in found]


async def test_a_stream_is_asked_behind_what_it_still_has_to_be_told(node: Node) -> None:
    with node.stream("a") as stream:
        stream.offer_bookmark()
        await node.ask()
        events = stream.take(node.catalog).split(b"\n\n")
    assert [event.partition(b"event: ")[2].partition(b"\n")[0] for event in events] == [
        b"bookmark",
        b"acknowledge",
        b"",
    ]
    assert b'{"revision":%d,"stream":"%b"}' % (node.revision, stream.token.encode()) in events[1]


async def test_nobody_is_asked_twice_for_what_it_has_said(node: Node) -> None:
    with node.stream("a") as stream:
        node.say(stream)
        found = await node.ask(LONG_S)
        assert stream.take(node.catalog) is None
    assert (found["acknowledged"], found["pending"], found["departed"]) == (["a"], [], [])


async def test_only_streams_of_the_service_are_asked(node: Node) -> None:
    with (
        node.stream("others", Interest("default", frozenset({"stock"}))),
        node.stream("far", Interest("shop")),
        node.stream("near", Interest("default", frozenset(), ("ord",))) as near,
        node.watchers.subscribed(ORDER, is_stream=False),
    ):
        found = await node.ask()
        assert (names(found["pending"]), found["acknowledged"]) == (["near"], [])
        node.say(near)
        assert (await node.ask())["acknowledged"] == ["near"]


async def test_one_that_begins_while_a_question_waits_is_waited_for_too(node: Node) -> None:
    with node.stream("a") as first:
        question = node.asking()
        await _asked(first)
        with node.stream("b") as second:
            node.say(first)
            await asyncio.sleep(0)
            assert not question.done()
            node.say(second)
            assert (await question)["acknowledged"] == ["a", "b"]


async def test_one_that_ends_without_a_word_is_told_of_until_it_is_back_or_taken_for_dead(node: Node) -> None:
    with node.stream("a") as stream:
        question = node.asking()
        await _asked(stream)
    found = await question
    assert (names(found["departed"]), found["pending"]) == (["a"], [])
    node.clock.advance(RETURN_S - 1)
    assert names((await node.ask())["departed"]) == ["a"]
    with node.stream("a"):
        found = await node.ask()
        assert (names(found["departed"]), names(found["pending"])) == ([], ["a"])
    node.clock.advance(RETURN_S + 1)
    assert (await node.ask())["departed"] == []


async def test_of_two_that_departed_under_one_name_one_that_is_back_is_one(node: Node) -> None:
    with node.stream("a"), node.stream("a"):
        pass
    with node.stream("a"):
        assert names((await node.ask())["departed"]) == ["a"]


async def test_one_that_had_it_in_force_when_it_ended_is_not_missing(node: Node) -> None:
    with node.stream("a") as stream:
        node.say(stream)
    assert (await node.ask())["departed"] == []


async def test_one_that_takes_its_leave_is_not_waited_for_any_more(node: Node) -> None:
    with node.stream("a") as stream:
        question = node.asking()
        await _asked(stream)
        node.say(stream, revision=0, leaving=True)
        found = await question
        assert (found["acknowledged"], found["pending"]) == ([], [])
    assert (await node.ask())["departed"] == []


async def test_a_stream_without_a_name_is_told_of_by_its_address_and_not_waited_for(node: Node) -> None:
    with node.stream(address="127.0.0.1:4711"):
        found = await node.ask(LONG_S)
    assert (names(found["pending"]), found["anonymous"]) == (["127.0.0.1:4711"], 1)
    assert (await node.ask())["departed"] == []


async def test_a_name_alone_says_which_stream_is_meant_while_it_has_only_one(node: Node) -> None:
    with node.stream("a") as stream:
        node.say(stream, stream="")
        assert stream.acknowledged == node.revision
        with node.stream("a"), pytest.raises(NotFound, match="2 streams"):
            node.say(stream, stream="")


@pytest.mark.parametrize("word", [{"stream": "99"}, {"subscriber": "b"}, {"namespace": "shop"}])
async def test_a_word_for_somebody_else_is_refused(node: Node, word: dict[str, Any]) -> None:
    with node.stream("a") as stream:
        with pytest.raises(NotFound):
            node.say(stream, **word)
        assert stream.acknowledged == 0


async def test_nobody_has_in_force_what_this_node_has_not_told(node: Node) -> None:
    with node.stream("a") as stream:
        node.say(stream, revision=node.revision + 1_000)
        assert stream.acknowledged == node.revision


async def test_a_revision_that_is_not_there_is_not_waited_for(node: Node) -> None:
    with pytest.raises(NotFound):
        await node.acknowledgements.answer("default", "order", node.revision + 1, 0.0)


async def test_questions_that_wait_are_bounded(node: Node) -> None:
    with node.stream("a") as stream:
        questions = [node.asking() for _ in range(QUESTIONS_MAX)]
        await _asked(stream)
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            await node.ask()
        node.say(stream)
        assert [(await question)["acknowledged"] for question in questions] == [["a"]] * QUESTIONS_MAX


@pytest.mark.parametrize("is_in_use", [False, True])
async def test_a_node_that_begins_in_a_registry_that_is_in_use_settles_first(tmp_path: Path, is_in_use: bool) -> None:
    """Clients of the one before it may be on their way."""
    clock = ManualClock()
    async with local_store(tmp_path / "aside") as store, TaskOwner("test") as tasks, asyncio.timeout(WAIT_S_MAX):
        if is_in_use:
            record = record_of(InstanceSpec(host="127.0.0.1", port=9001), "", 0)
            await store.put(b"quorate/registry/default/order/order-1", encode_record(record))
        catalog, watchers = Catalog(), Subscriptions()
        feed = CatalogFeed(store, catalog, watchers, tasks)
        acknowledgements = Acknowledgements("node-1", catalog, feed, watchers, clock)
        feed.start()
        await feed.loaded.wait()
        clock.advance(RETURN_S - 1)
        assert acknowledgements.settling_s() == (1 if is_in_use else 0)
        clock.advance(1)
        assert acknowledgements.settling_s() == 0


async def _asked(stream: Subscription) -> None:
    await stream.wait()
