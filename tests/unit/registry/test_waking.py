"""Thousands of watchers are woken some a turn of the event loop, each once, and get the newest state then."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from quorate_registry.catalog import Catalog, Interest
from quorate_registry.model import InstanceName
from quorate_registry.watch import WAKES_A_TURN, Subscription, Subscriptions

WATCHERS = 3 * WAKES_A_TURN + 1
TURNS_MAX = 100
NAME, OTHER = InstanceName("default", "shop", "a"), InstanceName("default", "shop", "b")


@contextmanager
def watching(count: int = WATCHERS) -> Iterator[tuple[Subscriptions, list[Subscription]]]:
    with ExitStack() as stack:
        subscriptions, interest = Subscriptions(), Interest("default", frozenset({"shop"}))
        yield subscriptions, [stack.enter_context(subscriptions.subscribed(interest)) for _ in range(count)]


def woken(watchers: list[Subscription]) -> int:
    return sum(watcher._wake.is_set() for watcher in watchers)


async def turns_until_all_are_woken(watchers: list[Subscription]) -> list[int]:
    """How many had been after each turn."""
    counts = []
    while woken(watchers) < len(watchers):
        await asyncio.sleep(0)
        counts.append(woken(watchers))
        assert len(counts) < TURNS_MAX
    return counts


async def test_a_change_wakes_some_a_turn_until_all_are() -> None:
    with watching() as (subscriptions, watchers):
        subscriptions.publish([NAME])
        assert woken(watchers) == WAKES_A_TURN
        assert await turns_until_all_are_woken(watchers) == [2 * WAKES_A_TURN, 3 * WAKES_A_TURN, WATCHERS]


async def test_few_are_woken_at_once() -> None:
    with watching(WAKES_A_TURN) as (subscriptions, watchers):
        subscriptions.publish_bookmark()
        assert woken(watchers) == WAKES_A_TURN


async def test_changes_that_come_meanwhile_put_nobody_in_line_twice() -> None:
    with watching() as (subscriptions, watchers):
        for name in (NAME, OTHER) * 5:
            subscriptions.publish([name])
        subscriptions.publish_bookmark()
        assert woken(watchers) == WAKES_A_TURN
        assert len(subscriptions._due) == WATCHERS, "those that were woken are in line again, behind the others"
        await turns_until_all_are_woken(watchers)
        catalog = Catalog()
        for watcher in watchers:
            event = watcher.take(catalog)
            assert event is not None
            assert event.count(b'"id":') == 2
            assert watcher.take(catalog) is None


async def test_who_leaves_while_in_line_is_missed_by_nobody() -> None:
    with watching() as (subscriptions, watchers):
        interest = Interest("default", frozenset({"shop"}))
        with ExitStack() as stack:
            passing = [stack.enter_context(subscriptions.subscribed(interest)) for _ in range(WAKES_A_TURN + 1)]
            subscriptions.publish([NAME])
            assert woken(passing) < len(passing), "more than are woken in a turn: some are in line"
        await turns_until_all_are_woken(watchers + passing)
    assert len(subscriptions) == 0
    assert not subscriptions._due


async def test_after_all_were_woken_the_next_change_begins_anew() -> None:
    with watching() as (subscriptions, watchers):
        for _ in range(2):
            subscriptions.publish([NAME])
            await turns_until_all_are_woken(watchers)
            for watcher in watchers:
                watcher.clear()
        assert not subscriptions._due
