"""A replicated log of one member that always leads: what is proposed is committed and applied at once.

Everything above it is the real thing: the state machine on its files, leases, watches. Its entries are remembered by
the state machine alone, so a log over the same state goes on where that stands.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from quorate_core.errors import InvalidRequest, OutcomeUnknown, QuorateError
from quorate_raft.core.messages import Entry
from quorate_store.replicated_log import CallHandler, LeadershipListener
from quorate_store.state import StateMachine


@dataclass(frozen=True, slots=True)
class LocalLogStatus:
    name: str
    role: str
    leader: str
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    members: tuple[str, ...]
    connected: tuple[str, ...]


class LocalLog:
    """`quorate_store.replicated_log.ReplicatedLog` without peers."""

    def __init__(self, machine: StateMachine, name: str) -> None:
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

    def status(self) -> LocalLogStatus:
        applied = self._machine.applied_index
        names = (self._name,)
        return LocalLogStatus(self._name, "leader", self._name, self._term, applied, applied, applied, names, ())
