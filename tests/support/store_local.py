"""A whole store in the test's own process: the real state machine, leases and watches on a log of one member.

    async with local_store(tmp_path, clock=clock) as store: ...

With a `ManualClock`, leases end when the clock is advanced past their time to live; wait for it by a watch.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorate_core.clock import Clock, ManualClock, SystemClock
from quorate_core.errors import InvalidRequest, OutcomeUnknown, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_raft.core.messages import Entry
from quorate_store.raft_engine import RaftStore
from quorate_store.replicated_log import CallHandler, LeadershipListener
from quorate_store.state import StateMachine


@dataclass(frozen=True, slots=True)
class DirectLogStatus:
    name: str
    role: str
    leader: str
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    members: tuple[str, ...]
    connected: tuple[str, ...]


class DirectLog:
    """A ReplicatedLog of one member that always leads: what is proposed is committed and applied at once.

    Its entries are remembered by the state machine alone, so a log over the same state goes on where that stands.
    """

    def __init__(self, machine: StateMachine, name: str = "local") -> None:
        self._machine = machine
        self._name = name
        self._term = machine.applied_term + 1
        self._handlers: dict[str, CallHandler] = {}

    async def propose(self, data: bytes, timeout_s: float) -> Any:
        await asyncio.sleep(0)  # as on a real log, others run before the outcome is known
        [result] = self._machine.apply([Entry(self._machine.applied_index + 1, self._term, data=data)])
        if isinstance(result, QuorateError):
            raise result
        return result

    async def read_index(self, timeout_s: float) -> int:
        await asyncio.sleep(0)
        return self._machine.applied_index

    async def call_leader(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        handler = self._handlers.get(method)
        if handler is None:
            raise InvalidRequest(f"no member answers the call {method!r}")
        try:
            async with asyncio.timeout(timeout_s):
                return await handler(self._name, payload)
        except TimeoutError as error:
            raise OutcomeUnknown(f"{method} took longer than {timeout_s} s") from error

    def register_call(self, method: str, handler: CallHandler) -> None:
        self._handlers[method] = handler

    async def confirm_leadership(self, timeout_s: float) -> int:
        await asyncio.sleep(0)
        return self._term

    def add_leadership_listener(self, listener: LeadershipListener) -> None:
        listener(True, self._term)

    def status(self) -> DirectLogStatus:
        applied = self._machine.applied_index
        names = (self._name,)
        return DirectLogStatus(self._name, "leader", self._name, self._term, applied, applied, applied, names, ())


@asynccontextmanager
async def local_store_and_machine(
    folder: Path, clock: Clock | None = None, name: str = "local", **options: Any
) -> AsyncIterator[tuple[RaftStore, StateMachine]]:
    """The same as `local_store`, with the state machine beside the store, for tests of what lies below the port."""
    failures: list[BaseException] = []
    if isinstance(clock, ManualClock):
        # A machine that is busy must not give leases more time than the test's clock does.
        options.setdefault("loop_time_s", ManualClock().monotonic_s)
    machine = StateMachine(folder / "state", map_bytes=1024**3)
    async with TaskOwner("local-store", failures.append) as tasks:
        store = RaftStore(DirectLog(machine, name), machine, clock or SystemClock(), tasks, **options)
        await store.start()
        try:
            yield store, machine
        finally:
            await store.close()
            machine.close()
    if failures:
        raise failures[0]


@asynccontextmanager
async def local_store(
    folder: Path, clock: Clock | None = None, name: str = "local", **options: Any
) -> AsyncIterator[RaftStore]:
    """A started store whose files are in `folder`/state; open it again there to find its data again.

    `options` are RaftStore's own (quota_bytes, history_revisions_kept). A background failure fails the test.
    """
    async with local_store_and_machine(folder, clock, name, **options) as (store, _):
        yield store
