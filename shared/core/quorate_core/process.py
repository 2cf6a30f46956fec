"""How every Quorate process starts and ends: uvloop, one stop event for SIGTERM and SIGINT, and a lifeline.

The lifeline ties a child to its supervisor: the supervisor holds the write end of a pipe and hands the read end
down by `QUORATE_LIFELINE_FD`. When the supervisor dies, however it dies, the kernel closes the pipe, and the child
drains as on SIGTERM; a child that cannot drain in time is ended.
"""

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
import uvloop

from quorate_core.errors import QuorateError, SettingsError

LIFELINE_VARIABLE = "QUORATE_LIFELINE_FD"
LIFELINE_GRACE_S = 10.0

EXIT_FAILURE = 1
EXIT_SETTINGS = 78
"""EX_CONFIG of sysexits.h: starting again without a change of settings is useless, and a supervisor may know it."""

GARBAGE_THRESHOLDS = (10_000, 2, 1_300)
"""Of `gc.set_threshold`: 10,000 new objects are a young scan; after more than 2 of these comes one of what they left,
and after more than 1,300 of those one of everything that is not frozen."""

log = structlog.get_logger(__name__)


class Stop:
    """Asked to stop: by a signal, by the lifeline, or by a part that has failed for good."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.failure: BaseException | None = None

    def request(self) -> None:
        self._event.set()

    def fail(self, error: BaseException) -> None:
        """Stop because of `error`; the process then exits with EXIT_FAILURE."""
        if self.failure is None:
            self.failure = error
        self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()


def run_process(main: Callable[[Stop], Awaitable[None]]) -> NoReturn:
    """Run `main` on uvloop until it returns, and exit. It is told by its `Stop` when to drain.

    Settings that are wrong end the process with EXIT_SETTINGS and one readable line on stderr; other errors of our
    own family with EXIT_FAILURE and one line; anything else with a trace, since that is a defect.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_main_with_signals(main))
    except SettingsError as error:
        print(f"{_program()}: {error.detail}", file=sys.stderr)  # noqa: T201 - before logs are configured
        raise SystemExit(EXIT_SETTINGS) from None
    except QuorateError as error:
        if structlog.is_configured():
            log.error("stopped_by_error", error=error.detail, kind=error.kind.slug)
        else:
            print(f"{_program()}: {error.detail}", file=sys.stderr)  # noqa: T201 - before logs are configured
        raise SystemExit(EXIT_FAILURE) from None
    raise SystemExit(0)


def allow_open_files(wanted: int) -> int:
    """Make the soft limit of open files `wanted`, as far as the hard one lets it; a greater one stays. Returns how many
    of the `wanted` are allowed now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


async def _main_with_signals(main: Callable[[Stop], Awaitable[None]]) -> None:
    gc.collect()  # of what imports have left; later, when peers and clients are there, nobody has time for it
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.request)
    _watch_lifeline()
    await main(stop)
    if stop.failure is not None:
        raise stop.failure


def tame_garbage_collector() -> None:
    """Call once when start-up is done: what was built so far is never scanned again, and scans of everything are rarer.
    It collects nothing itself, since peers may be waiting for an answer by now.

    NB: a scan holds the interpreter for a microsecond or half of one for each object. What young scans have left is
    scanned once more every fourth time, 40,000 objects then: were it every twentieth time and 50,000 each, as it once
    was, a node that takes many registrations in would stand still for half a second."""
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _watch_lifeline() -> None:
    text = os.environ.pop(LIFELINE_VARIABLE, "")
    if not text:
        return
    descriptor = int(text)
    os.set_inheritable(descriptor, False)

    def wait_for_end() -> None:
        while os.read(descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        # A thread of its own: this holds even when the event loop is stuck.
        threading.Event().wait(LIFELINE_GRACE_S)
        os._exit(EXIT_FAILURE)

    threading.Thread(target=wait_for_end, name="lifeline", daemon=True).start()


def _program() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else "quorate"
