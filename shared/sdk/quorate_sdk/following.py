"""Following an event stream of the control plane for as long as the process lives.

The states, and what leads from one to the next:

    away        no stream; the copy stays as it is and grows stale. After a backoff: connect, resuming by the copy's
                revision.
    connected   a first event has come. The stream fails or ends, its node stays silent, or following is ended: away.

A `resync` event, a refused revision, or an event that cannot be read lead to a connection without a revision, so
that the next event is a snapshot. The copy is never emptied for want of a control plane.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Protocol

from pydantic import ValidationError
from quorate_core.errors import Compacted, FutureRevision, QuorateError, Unavailable

from quorate_sdk.acknowledging import Acknowledger
from quorate_sdk.control_plane import ControlPlane, Params, StreamEvent
from quorate_sdk.failover import reconnect_s
from quorate_sdk.forks import ForkSafeLogger

STREAM_STABLE_S = 5.0
"""A stream that has lived so long was good: the backoff starts anew after it."""
BOOKMARK_SILENCE_S_MAX = 20.0
"""Registry and config center send a bookmark every 3 s as long as their node is in touch with a majority."""
REMINDER_FAILURES = 60
"""While the control plane is away, every so many failures are worth a line in the log."""

log = ForkSafeLogger(__name__)


class Copy(Protocol):
    """What an event stream keeps up to date."""

    @property
    def revision(self) -> int:
        """Everything up to it is in the copy; 0 when there is nothing yet."""
        ...

    def apply(self, event: StreamEvent) -> None:
        """Raises pydantic's ValidationError, and changes nothing, when the event cannot be read."""
        ...


class _MustResync(Exception):
    """This stream cannot go on from the copy's revision."""


class EventFollower:
    """Keeps `copy` up to date. Run `run` as a task.

    `event_silence_s_max`: when a server promises bookmarks, a stream that brings none for so long is of a node that
    is cut off from the others, and another one is asked. None: keep-alive comments are enough.
    `acknowledger`: answers `acknowledge` events, each after everything before it has been applied.
    """

    def __init__(
        self,
        name: str,
        control_plane: ControlPlane,
        path: str,
        params: Callable[[], Params],
        copy: Copy,
        *,
        event_silence_s_max: float | None = None,
        acknowledger: Acknowledger | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._name = name
        self._control_plane = control_plane
        self._path = path
        self._params = params
        self._copy = copy
        self._event_silence_s_max = event_silence_s_max
        self._acknowledger = acknowledger
        self._chance = chance or random.Random()
        self._resume = True
        self._failures = 0
        self._confirmed_at_s = time.monotonic()
        self._restart = asyncio.Event()
        self.connected = False
        self.first_event = asyncio.Event()
        """Set once the control plane has spoken."""

    @property
    def stale_s(self) -> float:
        """0 while connected; else seconds since the control plane last confirmed the copy."""
        return 0.0 if self.connected else time.monotonic() - self._confirmed_at_s

    def start_from_age(self, age_s: float) -> None:
        """The copy comes from a cache that is `age_s` seconds old."""
        self._confirmed_at_s = time.monotonic() - age_s

    def restart(self) -> None:
        """What is followed has changed: connect anew, for a snapshot."""
        self._resume = False
        self._restart.set()

    async def run(self) -> None:
        """Until cancelled; no failure of a stream, or of the copy, ends it."""
        try:
            while True:
                await self._follow_with_backoff()
        finally:
            self._disconnected()

    async def _follow_with_backoff(self) -> None:
        self._restart.clear()
        began_at_s = time.monotonic()
        try:
            await self._until_restart()
        except _MustResync as error:
            self._resume = False
            self._lost(str(error))
        except QuorateError as error:
            if isinstance(error, Compacted | FutureRevision):
                self._resume = False
            self._lost(error.detail)
        except Exception as error:
            # A defect, here or in a library. Whatever state it has left, a snapshot puts it right.
            self._resume = False
            self._lost(f"{type(error).__name__}: {error}", defect=error)
        if not self._restart.is_set():
            lived_long = time.monotonic() - began_at_s >= STREAM_STABLE_S
            self._failures = 1 if lived_long else self._failures + 1
            await asyncio.sleep(reconnect_s(self._failures, self._chance.random(), lived_long=lived_long))

    async def _until_restart(self) -> None:
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._follow_once())
            restarting = group.create_task(self._restart.wait())
            await asyncio.wait({following, restarting}, return_when=asyncio.FIRST_COMPLETED)
            following.cancel()
            restarting.cancel()
            await asyncio.wait({following})
        if not following.cancelled() and (error := following.result()) is not None:
            raise error

    async def _follow_once(self) -> Exception | None:
        """Follow one stream; returns why it ended, so that a task group does not wrap it."""
        last_event_id = self._copy.revision if self._resume and self._copy.revision else None
        try:
            async with (
                asyncio.timeout(None) as watchdog,
                aclosing(self._control_plane.stream_events(self._path, self._params(), last_event_id)) as events,
            ):
                self._rearm(watchdog)
                async for event in events:
                    self._rearm(watchdog)
                    self._take(event)
        except TimeoutError:
            self._control_plane.leave_endpoint()
            return Unavailable(f"no event for {self._event_silence_s_max} s: this node may be cut off")
        except Exception as error:  # raised by `_until_restart`, and told there by its kind
            return error
        return Unavailable("the server ended the stream")

    def _take(self, event: StreamEvent) -> None:
        if event.event == "resync":
            raise _MustResync(f"the server asked for a new start: {event.data}")
        if self._acknowledger is not None:
            self._acknowledger.heard_from(event)
        if event.event == "acknowledge":
            if self._acknowledger is not None:
                self._acknowledger.take(event)
            return
        try:
            self._copy.apply(event)
        except ValidationError as error:
            raise _MustResync(f"an event that cannot be read: {error}") from error
        self._resume = True
        self._confirmed_at_s = time.monotonic()
        if not self.connected:
            self.connected = True
            log.info("control_plane_connected", following=self._name, revision=self._copy.revision)
        self.first_event.set()

    def _rearm(self, watchdog: asyncio.Timeout) -> None:
        if self._event_silence_s_max is not None:
            watchdog.reschedule(asyncio.get_running_loop().time() + self._event_silence_s_max)

    def _lost(self, reason: str, *, defect: Exception | None = None) -> None:
        if not self._disconnected() and self._failures % REMINDER_FAILURES:
            return  # said already
        log.warning(
            "control_plane_away", following=self._name, reason=reason, revision=self._copy.revision, exc_info=defect
        )

    def _disconnected(self) -> bool:
        """Whether it was connected until now."""
        was_connected, self.connected = self.connected, False
        if was_connected:
            self._confirmed_at_s = time.monotonic()
        return was_connected
