"""Virtual time, and processes that can be killed, paused, and have clocks of their own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from quorate_simulation.clock import MachineClock
from quorate_simulation.loop import NothingToDo, SimulatedLoop, SimulatedProcess


def run(work: Callable[[SimulatedLoop], Awaitable[Any]]) -> Any:
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.close()


def process_on(loop: SimulatedLoop, rate: float = 1.0, boot_s: float = 0.0) -> SimulatedProcess:
    return SimulatedProcess("n1", loop, MachineClock(loop.true_time, rate, boot_s), lambda: None)


def test_an_hour_passes_at_once() -> None:
    async def work(loop: SimulatedLoop) -> float:
        await asyncio.wait_for(asyncio.sleep(3600, "done"), 4000)
        return loop.time()

    assert run(work) == pytest.approx(3600)


def test_every_step_is_looked_at_before_time_goes_on() -> None:
    seen: list[float] = []

    async def work(loop: SimulatedLoop) -> None:
        loop.on_idle = lambda: seen.append(loop.true_time_s)
        for seconds in (1, 2):
            await asyncio.sleep(seconds)

    run(work)
    assert seen == [0.0, 1.0]


def test_waiting_for_what_never_comes_is_an_error() -> None:
    async def work(_loop: SimulatedLoop) -> None:
        await asyncio.Event().wait()

    loop = SimulatedLoop()
    waiting = work(loop)
    with pytest.raises(NothingToDo):
        loop.run_until_complete(waiting)
    waiting.close()
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


def test_no_line_of_a_killed_process_runs_again_not_even_finally() -> None:
    told: list[str] = []

    async def life() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            told.append("finally")

    async def work(loop: SimulatedLoop) -> list[str]:
        process = process_on(loop)
        process.start(life())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(100)
        said = list(told)
        process.bury()
        return said

    assert run(work) == []


def test_a_paused_process_does_nothing_and_goes_on_late_and_in_order() -> None:
    told: list[tuple[str, float]] = []

    async def life(loop: SimulatedLoop) -> None:
        for name in ("first", "second"):
            await asyncio.sleep(1)
            told.append((name, loop.true_time()))

    async def work(loop: SimulatedLoop) -> None:
        process = process_on(loop)
        task = process.start(life(loop))
        await asyncio.sleep(0.5)
        process.pause()
        await asyncio.sleep(5)
        assert told == []
        process.resume()
        await task

    run(work)
    assert told == [("first", 5.5), ("second", 6.5)]


def test_each_process_goes_by_the_clock_of_its_machine() -> None:
    async def life(loop: SimulatedLoop) -> tuple[float, float, float]:
        began_s = loop.time()
        await asyncio.sleep(10)
        return began_s, loop.time(), loop.true_time()

    async def work(loop: SimulatedLoop) -> tuple[float, float, float]:
        await asyncio.sleep(1)
        return await process_on(loop, rate=2.0, boot_s=100.0).start(life(loop))

    assert run(work) == pytest.approx((100.0, 110.0, 6.0))


def test_when_its_clock_jumps_ahead_its_timers_are_due_sooner() -> None:
    async def life(loop: SimulatedLoop) -> float:
        await asyncio.sleep(10)
        return loop.true_time()

    async def work(loop: SimulatedLoop) -> float:
        process = process_on(loop)
        task = process.start(life(loop))
        await asyncio.sleep(1)
        loop.jump_ahead(process, process.clock, 7.0)
        return float(await task)

    assert run(work) == pytest.approx(3.0)


def test_the_worlds_timers_outlive_the_process_that_set_them() -> None:
    called: list[float] = []

    async def life(loop: SimulatedLoop) -> None:
        loop.later(5, lambda: called.append(loop.true_time()))

    async def work(loop: SimulatedLoop) -> None:
        process = process_on(loop, rate=2.0)
        await process.start(life(loop))
        process.kill()
        await asyncio.sleep(10)

    run(work)
    assert called == [5.0]
