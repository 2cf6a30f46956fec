"""Coroutines that run without a task do what they do in one."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from quorate_core.steps import run_without_task


class Ending:
    """Where `on_end` calls go."""

    def __init__(self) -> None:
        self.calls: list[BaseException | None] = []
        self.reached = asyncio.Event()

    def __call__(self, failure: BaseException | None) -> None:
        self.calls.append(failure)
        self.reached.set()


async def outcome_of(coroutine: Coroutine[Any, Any, None]) -> BaseException | None:
    ending = Ending()
    run_without_task(coroutine, ending)
    await ending.reached.wait()
    [failure] = ending.calls
    return failure


async def test_what_never_waits_has_ended_when_the_call_returns() -> None:
    async def work() -> None:
        return None

    ending = Ending()
    run_without_task(work(), ending)
    assert ending.calls == [None]


async def test_it_goes_on_with_each_result_in_turn() -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    seen: list[object] = []

    async def inner() -> object:
        return await first

    async def work() -> None:
        seen.append(await inner())
        await asyncio.sleep(0)
        seen.append(await second)
        seen.append(await first)  # one that is done already

    ending = Ending()
    run_without_task(work(), ending)
    assert seen == []
    first.set_result(1)
    second.set_result(2)
    await ending.reached.wait()
    assert (seen, ending.calls) == ([1, 2, 1], [None])


async def test_what_a_future_raises_is_raised_where_it_is_awaited() -> None:
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(KeyError("gone"))
    caught: list[str] = []

    async def work() -> None:
        try:
            await failed
        except KeyError as error:
            caught.append(str(error))
        raise ValueError("and this leaves")

    assert isinstance(await outcome_of(work()), ValueError)
    assert caught == ["'gone'"]


async def test_a_future_that_is_cancelled_ends_it_as_it_would_end_a_task() -> None:
    future = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    asyncio.get_running_loop().call_soon(future.cancel)
    assert isinstance(await outcome_of(work()), asyncio.CancelledError)


async def test_a_semaphore_lets_them_pass_in_order() -> None:
    turns, order, ending = asyncio.Semaphore(1), list[int](), Ending()

    async def work(number: int) -> None:
        async with turns:
            await asyncio.sleep(0)
            order.append(number)

    for number in range(3):
        run_without_task(work(number), ending)
    async with turns:
        assert order == [0, 1, 2]
    assert ending.calls == [None, None, None]


async def test_whoever_asks_for_the_present_task_is_told_that_there_is_none() -> None:
    """What such a coroutine must not do fails at its first use, in every test of it."""

    async def work() -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(0)

    ending = Ending()
    asyncio.get_running_loop().call_soon(run_without_task, work(), ending)
    await ending.reached.wait()
    assert isinstance(ending.calls[0], RuntimeError)


async def test_giving_way_lets_other_callbacks_come_between() -> None:
    order: list[str] = []

    async def work() -> None:
        for _ in range(3):
            order.append("work")
            await asyncio.sleep(0)

    ending = Ending()
    run_without_task(work(), ending)
    asyncio.get_running_loop().call_soon(order.append, "other")
    await ending.reached.wait()
    assert order == ["work", "work", "other", "work"]
