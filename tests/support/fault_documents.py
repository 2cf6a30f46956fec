"""What the linearizability checker judges a document of the config center by: every change is the next version.

The version after a change is that before it plus one, so the model leaves no room: a write that is lost, applied twice,
or acknowledged and undone gives a version that fits nowhere, also when nobody reads its content.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from quorate_simulation.linearizability import Operation


@dataclass(frozen=True, slots=True)
class Read:
    document: str

    def __str__(self) -> str:
        return "read"


@dataclass(frozen=True, slots=True)
class Publish:
    """`over`: only over this version (0: only when there is none), or over any when it is None."""

    document: str
    content: str
    over: int | None = None

    def __str__(self) -> str:
        return f"publish {self.content!r}" + ("" if self.over is None else f" over version {self.over}")


@dataclass(frozen=True, slots=True)
class Found:
    """What a read was answered. Version 0 and None: there is no document."""

    version: int
    content: str | None


@dataclass(frozen=True, slots=True)
class Published:
    version: int


@dataclass(frozen=True, slots=True)
class Refused:
    """`version`: the one that was there instead of the one asked for."""

    version: int


class DocumentModel:
    """States are what a read would find. No document is ever deleted."""

    def partition(self, operation: Operation) -> Hashable:
        call: Read | Publish = operation.input
        return call.document

    def initial(self) -> Found:
        return Found(0, None)

    def step(self, state: Found, operation: Operation) -> tuple[bool, Found]:
        call: Read | Publish = operation.input
        if isinstance(call, Read):
            return operation.output in (None, state), state
        takes_effect = call.over in (None, state.version)
        after = Found(state.version + 1, call.content) if takes_effect else state
        if operation.output is None:
            return True, after
        return operation.output == (Published(after.version) if takes_effect else Refused(state.version)), after
