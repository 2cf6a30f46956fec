"""Our circuit breaker under pybreaker's names, so that what people have written for pybreaker plugs in.

`NamedBreaker` has the surface of `pybreaker.CircuitBreaker` that callers and listeners use: `call`, `calling`, the
decorator, `state` and `current_state`, `listeners` with `before_call`, `success`, `failure` and `state_change`,
`exclude`, `open`, `close`, and `CircuitBreakerError`. The decisions are those of `quorate_resilience.breaker` alone;
pybreaker itself is not imported. Where the two differ, ours holds:

- It opens by the share of calls within a window that failed or were slow, and not by `fail_max` failures in a row.
  `fail_counter` is how many failed or were slow in what is counted now.
- Half-open it lets through exactly its number of probes, where pybreaker lets through all that come at once.
- A call that was cancelled says nothing (pybreaker counts `CancelledError` as a failure); so does any other exception
  that is no `Exception`.
- Coroutine functions are awaited, and their outcome counts; nothing is locked meanwhile. Listeners are told in the
  order of events, by whoever causes these.
- `open()` lasts until `close()`, as an operator's word should; pybreaker's lapses after `reset_timeout`.
- An exception of the call is always raised as it is, as with pybreaker's `throw_new_error_on_trip=False`; only a call
  that is not made raises CircuitBreakerError.

States have pybreaker's names: `closed`, `open`, `half-open`; one forced by an operator has that of what it does. To
have `except pybreaker.CircuitBreakerError` catch what is raised here, hand that class over as `error`.
"""

import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar

from quorate_resilience.breaker import BreakerState, CircuitBreaker, Permit, Transition

STATE_CLOSED = "closed"
STATE_HALF_OPEN = "half-open"
STATE_OPEN = "open"

_NAMES = {
    BreakerState.CLOSED: STATE_CLOSED, BreakerState.FORCED_CLOSED: STATE_CLOSED, BreakerState.OPEN: STATE_OPEN,
    BreakerState.FORCED_OPEN: STATE_OPEN, BreakerState.HALF_OPEN: STATE_HALF_OPEN,
}  # fmt: skip

T = TypeVar("T")
Exclusion = type[BaseException] | Callable[[BaseException], bool]


class CircuitBreakerError(Exception):
    """The call was not made, because the circuit is open, or half-open with all of its probes given."""


class NamedState:
    """What listeners see as a state: it has a `name`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"NamedState({self.name!r})"


class Listener(Protocol):
    """The four methods of `pybreaker.CircuitBreakerListener`; a subclass of it is one."""

    def before_call(self, cb: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None: ...

    def failure(self, cb: Any, exc: BaseException) -> None: ...

    def success(self, cb: Any) -> None: ...

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None: ...


class NamedBreaker:
    """`breaker` under pybreaker's names. It takes the breaker's transitions: nobody else may. `monotonic_s` reads a
    clock that does not go back."""

    def __init__(
        self,
        breaker: CircuitBreaker,
        monotonic_s: Callable[[], float],
        *,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        exclude: Iterable[Exclusion] = (),
        error: type[Exception] = CircuitBreakerError,
    ) -> None:
        """`exclude`: exceptions, or predicates of them, that are answers and no failures."""
        self.breaker = breaker
        self.name = name
        self._monotonic_s = monotonic_s
        self._listeners = list(listeners)
        self._excluded = list(exclude)
        self._error = error
        self._told = _NAMES[breaker.state]
        """The state that the listeners know of."""
        self._is_telling = False

    # What callers use.

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` if the circuit lets it; of a coroutine function the coroutine, which asks when it is awaited.
        Raises CircuitBreakerError, or what `func` raises."""
        if inspect.iscoroutinefunction(func):
            return self._call_awaited(func, *args, **kwargs)  # type: ignore[return-value]
        with self._calling(func, *args, **kwargs):
            return func(*args, **kwargs)

    @contextmanager
    def calling(self) -> Generator[None, None, None]:
        """`with breaker.calling():` around a block, which may await."""
        with self._calling(self.calling):
            yield

    def __call__(self, func: Callable[..., T]) -> Callable[..., T]:
        """As a decorator, of functions and coroutine functions."""
        if inspect.iscoroutinefunction(func):

            @wraps(func)
            async def call_awaited(*args: Any, **kwargs: Any) -> Any:
                return await self._call_awaited(func, *args, **kwargs)

            return call_awaited  # type: ignore[return-value]

        @wraps(func)
        def call(*args: Any, **kwargs: Any) -> T:
            return self.call(func, *args, **kwargs)

        return call

    def open(self) -> None:
        """Refuse every call until `close`."""
        self.breaker.force_open(self._monotonic_s())
        self.tell()

    def close(self) -> None:
        """Let calls through, and count anew, whatever the state was."""
        now_s = self._monotonic_s()
        if self.breaker.state is not BreakerState.CLOSED:
            self.breaker.force_closed(now_s)
            self.breaker.release(now_s)
        self.tell()

    # What callers and listeners read.

    @property
    def state(self) -> NamedState:
        return NamedState(self.current_state)

    @property
    def current_state(self) -> str:
        """`closed`, `open` or `half-open`. To a listener that asks while it is told of something, it is as pybreaker
        has it: the state before, until the change has been told."""
        if not self._is_telling:
            self.breaker.advance(self._monotonic_s())
        self.tell()
        return self._told

    @property
    def fail_counter(self) -> int:
        counts = self.breaker.counts(self._monotonic_s())
        return counts.failed + counts.slow

    @property
    def success_counter(self) -> int:
        """Of the probes, those that were well; 0 unless half-open."""
        if self.breaker.state is not BreakerState.HALF_OPEN:
            return 0
        counts = self.breaker.counts(self._monotonic_s())
        return counts.calls - counts.failed - counts.slow

    @property
    def reset_timeout(self) -> float:
        """Seconds that it stays open."""
        return self.breaker.settings.open_s

    @property
    def success_threshold(self) -> int:
        return self.breaker.settings.probes

    @property
    def excluded_exceptions(self) -> tuple[Exclusion, ...]:
        return tuple(self._excluded)

    def add_excluded_exception(self, exception: Exclusion) -> None:
        self._excluded.append(exception)

    def remove_excluded_exception(self, exception: Exclusion) -> None:
        self._excluded.remove(exception)

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether it counts as a failure."""
        return isinstance(exception, Exception) and not any(
            isinstance(exception, one) if isinstance(one, type) else one(exception) for one in self._excluded
        )

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return tuple(self._listeners)

    def add_listener(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def add_listeners(self, *listeners: Listener) -> None:
        self._listeners.extend(listeners)

    def remove_listener(self, listener: Listener) -> None:
        self._listeners.remove(listener)

    def tell(self) -> None:
        """Tell the listeners of changes of state that came since the last call; for whoever uses `breaker` directly."""
        while not self._is_telling and (changes := self.breaker.take_transitions()):
            with self._telling():
                for change in changes:
                    self._tell_change(change)

    # Making calls.

    async def _call_awaited(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._calling(func, *args, **kwargs):
            return await func(*args, **kwargs)

    @contextmanager
    def _calling(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        permit = self.breaker.try_acquire(self._monotonic_s())
        self.tell()
        if not isinstance(permit, Permit):
            message = (
                f"circuit {self.name or 'breaker'} is {_NAMES[permit.state]}: retry in {permit.retry_after_s:.3g} s"
            )
            raise self._error(message)
        try:
            for listener in self.listeners:
                listener.before_call(self, func, *args, **kwargs)
            yield
        except BaseException as error:
            self._failed(permit, error)
            raise
        permit.success(self._monotonic_s())
        self._tell_success()

    def _failed(self, permit: Permit, error: BaseException) -> None:
        now_s = self._monotonic_s()
        if self.is_system_error(error):
            permit.failure(now_s)
            with self._telling():
                for listener in self.listeners:
                    listener.failure(self, error)
            self.tell()
        elif isinstance(error, Exception):
            permit.success(now_s)
            self._tell_success()
        else:
            permit.cancelled(now_s)
            self.tell()

    @contextmanager
    def _telling(self) -> Generator[None, None, None]:
        """One event at a time: what a listener causes is told after what it is told of."""
        before, self._is_telling = self._is_telling, True
        try:
            yield
        finally:
            self._is_telling = before

    def _tell_success(self) -> None:
        """As pybreaker does: first the change of state, then the success."""
        self.tell()
        for listener in self.listeners:
            listener.success(self)

    def _tell_change(self, change: Transition) -> None:
        former, state = _NAMES[change.former], _NAMES[change.state]
        self._told = state
        if former != state:
            for listener in self.listeners:
                listener.state_change(self, NamedState(former), NamedState(state))
