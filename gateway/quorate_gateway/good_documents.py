"""A document of the config center as the gateway has it: the last version that was good, kept on disk.

What is published is good or rejected. One that is rejected changes nothing: it is told of, and the last good one stays
in force, also over restarts, where the published one may be newer and still no better. A document that is deleted, or
that a store set up anew has never had, stays in force as well: to end what it says, an empty one is published.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog
from quorate_core.errors import InvalidContent
from quorate_sdk.cache import CacheFile

log = structlog.get_logger(__name__)

D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A published version that is not applied, and why. Version and revision are 0 for a document that is gone."""

    version: int
    revision: int
    reason: str


class GoodContent(msgspec.Struct, frozen=True):
    """The file with the last content that was good. Version and revision are 0 when none is published."""

    version: int
    revision: int
    content: str


class Published(Protocol):
    """A document as the config center has it."""

    @property
    def version(self) -> int: ...

    @property
    def revision(self) -> int: ...

    @property
    def content(self) -> str: ...


class GoodDocument(Generic[D]):
    """`name` is `group/key`. `parse` raises InvalidContent; it is called in a thread. Run `file.keep_written` as a
    task, and call `file.flush` at the end."""

    def __init__(self, name: str, parse: Callable[[str], D], empty: D, path: Path) -> None:
        self.name = name
        self.value = empty
        self.rejected: Rejected | None = None
        self.good = GoodContent(0, 0, "")
        self.file = CacheFile(path, lambda: msgspec.json.encode(self.good))
        self._parse = parse

    def read(self) -> None:
        """What the file has. One that is damaged is logged and does no harm."""
        found = self.file.read()
        if found is None:
            return
        try:
            good = msgspec.json.decode(found[0], type=GoodContent)
            self.value = self._parse(good.content)
        except (msgspec.DecodeError, InvalidContent) as error:
            log.warning("good_document_ignored", document=self.name, reason=str(error))
            return
        self.good = good

    async def take(self, published: Published | None) -> bool:
        """Make what the config center has now, None when it has nothing, the good one; whether `value` is another than
        before."""
        if published is None:
            self._keep_without()
            return False
        if self.rejected is not None and self.rejected.revision == published.revision:
            return False  # it is no better than it was
        good = GoodContent(published.version, published.revision, published.content)
        value = self.value
        if good.content != self.good.content:
            try:
                # In a thread: a document may be large, and requests must not wait for it.
                value = await asyncio.to_thread(self._parse, good.content)
            except InvalidContent as error:
                self._reject(good, error)
                return False
        self.rejected = None
        if good == self.good:
            return False
        changed = good.content != self.good.content
        self.value, self.good = value, good
        self.file.mark_changed()
        return changed

    def _keep_without(self) -> None:
        if self.good.version and self.rejected is None:
            reason = "the document is gone; what was in force still is. To end it, publish one with an empty list"
            self.rejected = Rejected(0, 0, reason)
            log.warning("document_gone", document=self.name, still_in_force=self.good.version)

    def _reject(self, published: GoodContent, error: InvalidContent) -> None:
        self.rejected = Rejected(published.version, published.revision, error.detail)
        log.error(
            "document_rejected", document=self.name, version=published.version, reason=error.detail,
            still_in_force=self.good.version,
        )  # fmt: skip
