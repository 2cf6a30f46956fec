"""A worker: a data plane that serves what the first process tells it, and says what it counts.

Theory of operation. It is *set up* by the first message; then it follows updates. It *serves* as soon as it has the
snapshot of the moment; when the first process had none either as it started this one, it waits FIRST_UPDATE_S_MAX for
it, and then serves without, which is to say so to every client. It *drains* on SIGTERM, when the first process has
gone, and when the lifeline ends: it accepts nothing more, answers what it has, says what it has counted, and goes; its
routes are kept up to date meanwhile. It has no other way back: whatever is wrong with it ends it, and the first
process makes another one.
"""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import structlog
from quorate_core.errors import InvariantViolation, SettingsError
from quorate_core.logs import configure_logs
from quorate_core.process import Stop, tame_garbage_collector
from quorate_core.tasks import TaskOwner

from quorate_gateway.assembly import DRAIN_S, compile_context, connection_limits, make_plane
from quorate_gateway.proxy import COMPILED
from quorate_gateway.proxy.plane import TakeConnection
from quorate_gateway.proxy.tls import Certificate
from quorate_gateway.served import LocalPlane
from quorate_gateway.settings import WorkerSettings
from quorate_gateway.snapshot import EMPTY
from quorate_gateway.workers.accepting import SharedAcceptor
from quorate_gateway.workers.channel import Channel
from quorate_gateway.workers.followed import Followed
from quorate_gateway.workers.messages import (
    Applied,
    Ask,
    Codec,
    FromWorker,
    ReloadCertificate,
    Reloaded,
    Serving,
    Setup,
    ToWorker,
    Update,
)
from quorate_gateway.workers.reports import Reporter
from quorate_gateway.workers.shared_connections import SharedConnectionCounts
from quorate_gateway.workers.shared_memory import SharedMemory
from quorate_gateway.workers.shared_table import SharedTables

REPORT_INTERVAL_S = 0.25
LAST_REPORT_S_MAX = 0.25
FIRST_UPDATE_S_MAX = 1.0
"""How long a worker that was started without a snapshot waits for one: the first process may just be reading it."""
TOKEN_KEYS_S_MAX = 2.0
"""How long a worker that replaces another waits for the keys of tokens before it serves."""

log = structlog.get_logger(__name__)


async def main(stop: Stop, channel_end: int, listener: int, memory: int) -> None:
    """The arguments are descriptors that the first process has handed down."""
    channel = await Channel.open(socket.socket(fileno=channel_end))
    setup = await _receive(channel)
    if setup is None:
        return
    if not isinstance(setup, Setup):
        raise InvariantViolation(f"a worker is first told {type(setup).__name__}, not its settings")
    settings = setup.read()
    configure_logs(f"{settings.name}/{setup.number}", settings.log_format, settings.log_level)
    _leave_to_first_process(signal.SIGHUP, signal.SIGINT)
    async with AsyncExitStack() as ends:
        tasks = await ends.enter_async_context(TaskOwner(settings.name, stop.fail))
        worker = Worker(channel, setup, settings, SharedMemory(memory), tasks)
        await worker.start(socket.socket(fileno=listener), ends)
        following = tasks.start(worker.follow(), "follow")
        following.add_done_callback(lambda _: stop.request())
        await stop.wait()
        log.info("draining")


class Worker:
    """The parts of the one worker that a process is."""

    def __init__(
        self, channel: Channel, setup: Setup, settings: WorkerSettings, memory: SharedMemory, tasks: TaskOwner
    ) -> None:
        self._channel = channel
        self._setup = setup
        self._settings = settings
        self._memory = memory
        self._tasks = tasks
        tables = SharedTables(memory)
        limits = connection_limits(settings)
        self._connections = SharedConnectionCounts(limits, tables, setup.number, settings.workers)
        self._plane = make_plane(settings, tasks, limits, self._connections)
        self._context = compile_context(settings, tasks, tables)
        self._followed = Followed(self._plane.swap, self._context, self._plane.monotonic_s)
        self._reporter = Reporter(LocalPlane(self._plane, self._context.shared_limits))
        self._coming: asyncio.Task[ToWorker | None] | None = None
        """The next message, when somebody waits for it already."""
        self._certificate: Certificate | None = None
        if settings.tls_certificate_file is not None and settings.tls_key_file is not None:
            self._certificate = Certificate(settings.tls_certificate_file, settings.tls_key_file)

    async def start(self, listener: socket.socket, ends: AsyncExitStack) -> None:
        """Serve, at the latest when the first update has been applied. `ends` drains."""
        shared = self._context.shared_limits
        if shared is not None:
            shared.start()
            ends.push_async_callback(shared.close)
        self._context.tokens.start(self._tasks)
        await self._take_first()
        await self._plane.start(listener, self._certificate, self._acceptor)
        self._connections.publish()
        ends.push_async_callback(self._report_last)
        ends.push_async_callback(self._plane.drain, DRAIN_S)
        ends.callback(self._connections.leave)
        tame_garbage_collector()
        self._tell(Serving())
        self._tasks.start(self._report_forever(), "reports")
        log.info(
            "worker_serves", connections_max=self._connections.limits.client_connections_max,
            compiled=COMPILED.is_compiled or COMPILED.reason,
        )  # fmt: skip

    async def follow(self) -> None:
        """Do what the first process says, until it has gone."""
        while (message := await self._next_message()) is not None:
            await self._do(message)

    async def _next_message(self) -> ToWorker | None:
        """None when the first process has gone."""
        if self._coming is None:
            return await _receive(self._channel)
        message = await self._coming
        self._coming = None
        return message

    async def _do(self, message: ToWorker) -> None:
        match message:
            case Update():
                await self._followed.take(message)
                self._tell(Applied(message.number))
            case Ask():
                self._tell(self._reporter.report(message.number))
            case ReloadCertificate():
                self._tell(Reloaded(self._reload()))
            case Setup():
                raise InvariantViolation("a worker is set up once")

    async def _take_first(self) -> None:
        """The first snapshot, and with it the keys of tokens, unless there is none yet."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + FIRST_UPDATE_S_MAX
        while self._followed.snapshot is EMPTY:
            # NB: the waiting may be given up, but not the message, of which a part may have been read.
            self._coming = self._tasks.start(_receive(self._channel), "first-message")
            left_s = None if self._setup.has_snapshot else max(0.0, ends_s - loop.time())
            await asyncio.wait({self._coming}, timeout=left_s)
            if not self._coming.done():
                return
            message = await self._next_message()
            if message is None:
                return
            await self._do(message)
        try:
            async with asyncio.timeout(TOKEN_KEYS_S_MAX):
                await self._context.tokens.until_fetched()
        except TimeoutError:
            log.warning("token_keys_missing", waited_s=TOKEN_KEYS_S_MAX)

    def _acceptor(self, listener: socket.socket, take: TakeConnection, is_full: Callable[[], bool]) -> SharedAcceptor:
        connections = self._connections
        return SharedAcceptor(listener, take, is_full, self._tasks, self._memory, lambda: connections.total)

    def _reload(self) -> str:
        if self._certificate is None:
            return ""
        try:
            self._certificate.reload()
        except SettingsError as error:
            return error.detail
        return ""

    async def _report_forever(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            self._connections.publish()
            # NB: to a first process that does not read, nothing is said until it does.
            if self._channel.is_idle:
                self._tell(self._reporter.report())

    async def _report_last(self) -> None:
        """What was counted in the drain too."""
        self._tell(self._reporter.report())
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_REPORT_S_MAX):
                await self._channel.flush()

    def _tell(self, message: FromWorker) -> None:
        self._channel.send(Codec.encode(message))


def _leave_to_first_process(*signals: signal.Signals) -> None:
    """Of a terminal, all processes get them; the first one says what is to be read again, and when to end."""
    for number in signals:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


async def _receive(channel: Channel) -> ToWorker | None:
    payload = await channel.receive()
    if payload is None:
        return None
    message: ToWorker = Codec.to_worker(payload)
    return message
