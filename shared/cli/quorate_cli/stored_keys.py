"""The store's API for commands: keys and values as bytes, over any node (`client.ControlPlane`).

A range with many keys is read in pages, all at the revision of the first, so that it is one moment's.
"""

import base64
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quorate_core.errors import QuorateError

from quorate_cli.client import ControlPlane

PAGE_KEYS = 500
VALUE_BYTES_MAX = 1_572_864
"""1.5 MiB: the store takes no larger request."""
_REQUEST_ID_BYTES = 16
_EVERY_KEY = b"\0"


@dataclass(frozen=True, slots=True)
class KeyRange:
    """One key, or all that begin with it. The empty prefix is every key."""

    key: bytes
    is_prefix: bool = False

    @property
    def begin(self) -> bytes:
        return self.key or _EVERY_KEY if self.is_prefix else self.key

    @property
    def end(self) -> bytes:
        """The first key after the range; empty for one key alone, a zero byte when there is no such end."""
        if not self.is_prefix:
            return b""
        trimmed = self.key.rstrip(b"\xff")
        return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else _EVERY_KEY

    def fields(self) -> dict[str, Any]:
        """As the API takes it."""
        return {"key": _encoded(self.begin), **({"range_end": _encoded(self.end)} if self.end else {})}


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key with its value, as of a revision. `value` is empty where only keys were asked for, or after a deletion."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int

    @classmethod
    def parse(cls, kv: Mapping[str, Any]) -> "StoredKey":
        """From the API's form. Raises QuorateError for what is none."""
        try:
            return cls(
                _decoded(kv.get("key")), _decoded(kv.get("value")), _number(kv, "create_revision"),
                _number(kv, "mod_revision"), _number(kv, "version"), _number(kv, "lease"),
            )  # fmt: skip
        except (ValueError, TypeError, AttributeError) as error:
            raise QuorateError(f"the store's answer cannot be understood: {error}") from error


@dataclass(frozen=True, slots=True)
class Found:
    """A read: `count` keys are in the range at `revision`, of which the first `len(kvs)` were asked for."""

    revision: int
    count: int
    kvs: list[StoredKey]


class StoredKeys:
    """The store behind `control_plane`. Every call may raise what `ControlPlane` raises."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane

    def read(
        self, keys: KeyRange, *, limit: int = 0, revision: int = 0, keys_only: bool = False, serializable: bool = False
    ) -> Found:
        """In order of key. `limit` 0: all; `revision` 0: now. Raises Compacted or FutureRevision for one that is not
        to be had."""
        first: Found | None = None
        kvs: list[StoredKey] = []
        for page in self._pages(keys, limit, revision, {"keys_only": keys_only, "serializable": serializable}):
            first = first or page
            kvs += page.kvs
        if first is None:
            raise QuorateError("the store has answered nothing")
        return Found(first.revision, first.count, kvs)

    def _pages(self, keys: KeyRange, limit: int, revision: int, flags: Mapping[str, bool]) -> Iterator[Found]:
        begin, left = keys.fields(), limit
        while True:
            wanted = min(left, PAGE_KEYS) if limit else PAGE_KEYS
            page = self._page({**begin, "limit": str(wanted), "revision": str(revision), **flags})
            yield page
            left -= len(page.kvs)
            if len(page.kvs) < wanted or page.count == len(page.kvs) or (limit and left <= 0):
                return
            revision = revision or page.revision
            begin["key"] = _encoded(page.kvs[-1].key + b"\0")

    def _page(self, body: Mapping[str, Any]) -> Found:
        answer = self._control_plane.call_json("/v3/kv/range", body)
        kvs = [StoredKey.parse(kv) for kv in answer.get("kvs", [])]
        return Found(_number(answer.get("header", {}), "revision"), _number(answer, "count"), kvs)

    def count(self, keys: KeyRange) -> int:
        return self._page({**keys.fields(), "count_only": True}).count

    def put(self, key: bytes, value: bytes, lease: int, *, previous: bool) -> tuple[int, StoredKey | None]:
        """The revision, and what the key was before, if that was asked for. Raises NotFound for an unknown lease."""
        body = {"key": _encoded(key), "value": _encoded(value), "lease": str(lease), "prev_kv": previous}
        answer = self._write("/v3/kv/put", body)
        before = answer.get("prev_kv")
        return _number(answer["header"], "revision"), StoredKey.parse(before) if before else None

    def delete(self, keys: KeyRange) -> tuple[int, int]:
        """The revision, and how many keys were deleted."""
        answer = self._write("/v3/kv/deleterange", keys.fields())
        return _number(answer["header"], "revision"), _number(answer, "deleted")

    def _write(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._control_plane.call_json(path, body, request_id=secrets.token_hex(_REQUEST_ID_BYTES))


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str | None) -> bytes:
    return base64.b64decode(text, validate=True) if text else b""


def _number(fields: Mapping[str, Any], name: str) -> int:
    """64-bit numbers come as text, and what is zero is left out."""
    return int(fields.get(name, 0))
