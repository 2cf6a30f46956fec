"""Callbacks that want to hear of changes. One that fails is logged and disturbs nobody else."""

from collections.abc import Callable
from typing import Generic, ParamSpec

from quorate_sdk.forks import ForkSafeLogger

P = ParamSpec("P")

log = ForkSafeLogger(__name__)


class Subscribers(Generic[P]):
    def __init__(self, of: str) -> None:
        self._of = of
        self._callbacks: list[Callable[P, None]] = []

    def add(self, callback: Callable[P, None]) -> Callable[[], None]:
        """Returns what ends the subscription; calling that twice does no harm."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def tell(self, *arguments: P.args, **named: P.kwargs) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(*arguments, **named)
            except Exception:
                log.exception("subscriber_failed", of=self._of)
