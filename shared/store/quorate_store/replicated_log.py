"""What the store needs of consensus: a log that is replicated, and a word with its leader. RaftDriver fits it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

CallHandler = Callable[[str, bytes], Awaitable[bytes]]
"""(sender's name, payload) to the answer; may raise any QuorateError, which the caller then gets."""
LeadershipListener = Callable[[bool, int], None]
"""(leads now, term). Leading begins when everything committed before has been applied here."""


class LogStatus(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def leader(self) -> str: ...
    @property
    def term(self) -> int: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def members(self) -> Sequence[str]: ...
    @property
    def connected(self) -> Sequence[str]: ...


class ReplicatedLog(Protocol):
    async def propose(self, data: bytes, timeout_s: float) -> Any:
        """Append from any member; the result of applying it here. A QuorateError result is raised. Raises NotProposed
        (surely not appended) and OutcomeUnknown."""
        ...

    async def read_index(self, timeout_s: float) -> int:
        """Linearizable barrier: everything committed when this was called has been applied here when it returns.
        Raises NotProposed or DeadlineExceeded."""
        ...

    async def call_leader(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask the leader, which may be this member. Raises what its handler raised."""
        ...

    def register_call(self, method: str, handler: CallHandler) -> None: ...

    async def confirm_leadership(self, timeout_s: float) -> int:
        """The term in which a majority has confirmed, after this was called, that this member leads. Raises
        NotProposed when it does not."""
        ...

    def add_leadership_listener(self, listener: LeadershipListener) -> None: ...

    def status(self) -> LogStatus: ...
