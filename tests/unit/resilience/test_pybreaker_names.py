"""pybreaker's vocabulary: what people have written for the real library works with our breaker."""

import asyncio
from typing import Any

import pybreaker
import pytest
from quorate_resilience import BreakerSettings, BreakerState, CircuitBreaker
from quorate_resilience.adapters import pybreaker_names
from quorate_resilience.adapters.pybreaker_names import CircuitBreakerError, NamedBreaker


class Recorder(pybreaker.CircuitBreakerListener):
    """As a user of pybreaker writes one: a subclass of its class, which reads what pybreaker documents."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.events.append(f"before {cb.name} {func.__name__}{args}")

    def failure(self, cb: Any, exc: BaseException) -> None:
        self.events.append(f"failure {type(exc).__name__} while {cb.current_state}")

    def success(self, cb: Any) -> None:
        self.events.append(f"success while {cb.state.name}")

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.events.append(f"{cb.name}: {old_state.name} -> {new_state.name}")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def named(clock: Clock | None = None, **settings: Any) -> tuple[NamedBreaker, Recorder]:
    values = {"calls_min": 2, "probes": 2, **settings}
    listener = Recorder()
    breaker = CircuitBreaker(BreakerSettings(**values))
    return NamedBreaker(breaker, clock or Clock(), name="orders", listeners=[listener]), listener


def fail() -> None:
    raise OSError("down")


def work(value: int = 0) -> int:
    return value


def trip(breaker: NamedBreaker) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            breaker.call(fail)
    assert breaker.current_state == "open"


def test_the_names_of_the_states_are_those_of_the_library() -> None:
    for name in ("STATE_OPEN", "STATE_CLOSED", "STATE_HALF_OPEN"):
        assert getattr(pybreaker_names, name) == getattr(pybreaker, name)
    assert set(pybreaker_names._NAMES) == set(BreakerState)
    assert set(pybreaker_names._NAMES.values()) == {
        pybreaker.STATE_OPEN, pybreaker.STATE_CLOSED, pybreaker.STATE_HALF_OPEN,
    }  # fmt: skip


def scene(breaker: Any, fail_times: int) -> None:
    breaker.call(work, 7)
    for _ in range(fail_times):
        with pytest.raises((OSError, pybreaker.CircuitBreakerError)):
            breaker.call(fail)
    with pytest.raises(pybreaker.CircuitBreakerError):
        breaker.call(work, 1)


def test_a_listener_hears_of_us_what_it_hears_of_the_library() -> None:
    """The same calls, the same listener: a breaker of pybreaker and one of ours, both opening at the third failure."""
    theirs_heard, ours_heard = Recorder(), Recorder()
    theirs = pybreaker.CircuitBreaker(fail_max=3, listeners=[theirs_heard], name="orders")
    ours = NamedBreaker(
        CircuitBreaker(BreakerSettings(calls_min=4)), Clock(), name="orders", listeners=[ours_heard],
        error=pybreaker.CircuitBreakerError,
    )  # fmt: skip
    scene(theirs, 3)
    scene(ours, 3)
    assert ours_heard.events == theirs_heard.events
    assert ours_heard.events[-1] == "orders: closed -> open"


def test_it_opens_and_refuses_and_probes_and_closes_and_each_is_told() -> None:
    clock = Clock()
    breaker, listener = named(clock)
    trip(breaker)
    with pytest.raises(CircuitBreakerError, match="circuit orders is open: retry in 5 s"):
        breaker.call(work)
    clock.now_s = 5.0
    assert breaker.call(work, 3) == 3
    assert (breaker.current_state, breaker.success_counter, breaker.fail_counter) == ("half-open", 1, 0)
    assert breaker.call(work) == 0
    assert breaker.state.name == "closed"
    changes = [event for event in listener.events if "->" in event]
    assert changes == ["orders: closed -> open", "orders: open -> half-open", "orders: half-open -> closed"]
    assert listener.events[-1] == "success while closed"


def test_it_is_half_open_when_somebody_looks_and_not_only_when_somebody_calls() -> None:
    clock = Clock()
    breaker, listener = named(clock)
    trip(breaker)
    clock.now_s = 6.0
    assert breaker.current_state == "half-open"
    assert listener.events[-1] == "orders: open -> half-open"


def test_half_open_it_lets_through_its_probes_and_no_more() -> None:
    clock = Clock()
    breaker, _ = named(clock)
    trip(breaker)
    clock.now_s = 5.0
    with breaker.calling(), breaker.calling(), pytest.raises(CircuitBreakerError, match="half-open"):
        breaker.call(work)


def test_an_exception_that_is_excluded_is_an_answer() -> None:
    breaker, listener = named()
    breaker.add_excluded_exception(LookupError)
    breaker.add_excluded_exception(lambda error: "fine" in str(error))
    for error in (KeyError("x"), OSError("fine")):
        with pytest.raises(type(error)), breaker.calling():
            raise error
    assert [event.partition(" ")[0] for event in listener.events] == ["before", "success"] * 2
    breaker.remove_excluded_exception(LookupError)
    assert breaker.is_system_error(KeyError())
    assert len(breaker.excluded_exceptions) == 1


async def test_coroutines_are_awaited_and_what_they_raise_counts() -> None:
    breaker, _ = named()

    @breaker
    async def get(ok: bool) -> str:
        await asyncio.sleep(0)
        if not ok:
            raise OSError("down")
        return "got"

    assert await get(True) == "got"
    with pytest.raises(OSError, match="down"):
        await get(False)
    assert breaker.current_state == "open"
    with pytest.raises(CircuitBreakerError):
        await get(True)


async def test_nothing_is_locked_while_a_call_is_awaited() -> None:
    breaker, _ = named()
    inside = asyncio.Barrier(2)

    async def meet() -> None:
        async with asyncio.timeout(10):
            await inside.wait()

    await asyncio.gather(breaker.call(meet), breaker.call(meet))


async def test_a_call_that_is_cancelled_says_nothing() -> None:
    breaker, listener = named()
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    for _ in range(5):
        began.clear()
        task = asyncio.ensure_future(breaker.call(hang))  # noqa: TID251 - awaited below
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)
    assert all(event.startswith("before") for event in listener.events)


def test_a_function_can_be_decorated() -> None:
    breaker, _ = named()

    @breaker
    def double(value: int) -> int:
        """Twice."""
        return 2 * value

    assert (double(4), double.__name__, double.__doc__) == (8, "double", "Twice.")


def test_an_operator_opens_it_until_it_is_closed() -> None:
    clock = Clock()
    breaker, listener = named(clock)
    breaker.open()
    clock.now_s = 1_000.0
    assert breaker.current_state == "open"
    with pytest.raises(CircuitBreakerError):
        breaker.call(work)
    breaker.close()
    assert breaker.call(work, 2) == 2
    assert [event for event in listener.events if "->" in event] == ["orders: closed -> open", "orders: open -> closed"]


def test_closing_one_that_opened_by_itself_begins_anew() -> None:
    breaker, _ = named()
    trip(breaker)
    breaker.close()
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)
    breaker.close()
    assert breaker.breaker.entered[BreakerState.CLOSED] == 1


def test_listeners_come_and_go() -> None:
    breaker, first = named()
    second, third = Recorder(), Recorder()
    breaker.add_listener(second)
    breaker.add_listeners(third)
    breaker.remove_listener(first)
    breaker.call(work)
    assert (len(first.events), len(second.events), len(third.events)) == (0, 2, 2)
    assert breaker.listeners == (second, third)


def test_changes_that_others_cause_are_told_when_it_is_asked_to() -> None:
    breaker, listener = named()
    breaker.breaker.force_open(0.0)
    breaker.tell()
    assert listener.events == ["orders: closed -> open"]
    breaker.breaker.force_closed(0.0)
    breaker.breaker.release(0.0)
    breaker.tell()
    assert listener.events[1:] == ["orders: open -> closed"]


def test_the_settings_are_there_under_their_other_names() -> None:
    breaker, _ = named(open_s=7.0, probes=3)
    assert (breaker.reset_timeout, breaker.success_threshold, repr(breaker.state)) == (7.0, 3, "NamedState('closed')")
