"""Tasks have owners: none is lost, none fails in silence."""

import asyncio

import pytest
from quorate_core.tasks import TaskOwner


async def test_a_failing_task_is_told_to_the_owner() -> None:
    failures: list[BaseException] = []
    owner = TaskOwner("test", on_failure=failures.append)

    async def fail() -> None:
        raise ValueError("boom")

    task = owner.start(fail(), "fail")
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert [str(error) for error in failures] == ["boom"]


async def test_closing_ends_what_runs_and_refuses_what_comes() -> None:
    owner = TaskOwner("test")
    ended = asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    owner.start(run(), "run")
    await asyncio.sleep(0)
    await owner.close()
    assert ended.is_set()
    assert len(owner) == 0
    with pytest.raises(RuntimeError, match="is closing"):
        owner.start(run(), "late")


async def test_draining_lets_work_finish() -> None:
    owner = TaskOwner("test")
    gate, finished = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        await gate.wait()
        finished.set()

    owner.start(run(), "run")
    asyncio.get_running_loop().call_soon(gate.set)
    await owner.drain(timeout_s=10)
    assert finished.is_set()


async def test_a_task_that_closes_its_own_owner_does_not_wait_for_itself() -> None:
    owner = TaskOwner("test")
    await asyncio.wait_for(owner.start(owner.close(), "close"), timeout=10)
