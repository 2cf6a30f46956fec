"""One worker as the first process sees it: its process, what it was told, and what it has said."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from enum import StrEnum

import structlog
from quorate_core.process import LIFELINE_VARIABLE

from quorate_gateway.settings import WorkerSettings
from quorate_gateway.workers.channel import Channel
from quorate_gateway.workers.feed import Feed, Told
from quorate_gateway.workers.messages import (
    Applied,
    Ask,
    Codec,
    FromWorker,
    ReloadCertificate,
    Reloaded,
    Report,
    Serving,
    Setup,
    ToWorker,
)
from quorate_gateway.workers.tally import Tally

RELOADS_WAITING_MAX = 2

log = structlog.get_logger(__name__)


class WorkerState(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    SILENT = "silent"
    """It has not reported for a while: it is stopped, or has far too much to do."""
    GONE = "gone"


class WorkerProcess:
    """One process, from its start to its end; another one in its place is another object."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.number = number
        self.process = process
        self.state = WorkerState.STARTING
        self.feed = Feed()
        self.tally = Tally()
        self.unheard_ticks = 0
        """Looks of the watch since it last said anything."""
        self.answered = asyncio.Event()
        """Set while no question waits for an answer."""
        self.answered.set()
        self._asked = 0
        self._reloads = 0
        """Certificates that it still has to reload."""
        self._channel = channel

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def may_serve(self) -> bool:
        """Whether it has routes by which it may answer requests, now or in a moment."""
        return self.state is not WorkerState.GONE and self.feed.number > 0

    def tell_news(self, told: Told) -> None:
        """What is other than it was told before, unless it still works on that."""
        update = self.feed.next_update(told)
        if update is not None:
            self._send(update)

    def ask(self) -> None:
        """For a report with details; `answered` is set when it has come. Only one question is asked at a time."""
        if self.answered.is_set():
            self._asked += 1
            self.answered.clear()
            self._send(Ask(self._asked))

    def reload_certificate(self) -> None:
        """Not more than once beyond the one that it may be about: the files are read when it comes to it."""
        if self._reloads < RELOADS_WAITING_MAX:
            self._reloads += 1
            self._send(ReloadCertificate())

    def set_up(self, settings: WorkerSettings, told: Told) -> None:
        """The first that it is told, and what is served if that is known."""
        has_snapshot = Feed().next_update(told) is not None
        self._send(Setup(self.number, settings.model_dump_json().encode(), has_snapshot))
        self.tell_news(told)

    async def hear(self, heard: Callable[[FromWorker], None]) -> None:
        """Take what it says, and call `heard` then, until it has gone. Raises what a garbled message raises."""
        while (payload := await self._channel.receive()) is not None:
            message: FromWorker = Codec.from_worker(payload)
            self.unheard_ticks = 0
            match message:
                case Serving():
                    self.state = WorkerState.SERVING
                case Applied():
                    self.feed.was_applied(message.number)
                case Report():
                    self.tally.take(message)
                    if message.answers == self._asked:
                        self.answered.set()
                case Reloaded():
                    self._reloads -= 1
                    if message.error:
                        log.error("certificate_not_reloaded", worker=self.number, reason=message.error)
                    else:
                        log.info("certificate_in_use", worker=self.number)
            heard(message)

    def terminate(self) -> None:
        """Let it drain."""
        if self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()

    def close(self) -> None:
        self.state = WorkerState.GONE
        self.answered.set()
        self._channel.close()

    def _send(self, message: ToWorker) -> None:
        if self.state is WorkerState.GONE:
            return
        self._channel.send(Codec.encode(message))


async def start_worker(
    number: int, settings: WorkerSettings, listener: int, memory: int, lifeline: int, told: Told
) -> WorkerProcess:
    """Begin a worker and tell it its settings. `listener`, `memory` and `lifeline` are descriptors that it inherits,
    the last of a pipe that ends with us."""
    mine, its = socket.socketpair()
    with its:
        try:
            channel = await Channel.open(mine)
        except BaseException:
            mine.close()
            raise
        process = await _begin(number, settings, its.fileno(), listener, memory, lifeline, channel)
    worker = WorkerProcess(number, process, channel)
    worker.set_up(settings, told)
    return worker


async def _begin(
    number: int, settings: WorkerSettings, its: int, listener: int, memory: int, lifeline: int, channel: Channel
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "quorate_gateway.workers", f"{settings.name}/{number}", str(its),
            str(listener), str(memory), stdin=asyncio.subprocess.DEVNULL, pass_fds=(its, listener, memory, lifeline),
            env={**os.environ, LIFELINE_VARIABLE: str(lifeline)},
        )  # fmt: skip
    except BaseException:
        channel.close()
        raise
