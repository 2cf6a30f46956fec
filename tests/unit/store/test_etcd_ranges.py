"""Ranges that are read in pages, of a store that cannot answer with all at once."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
from quorate_core.clock import SystemClock
from quorate_core.errors import InvalidRequest
from quorate_core.settings import HostPort
from quorate_store.etcd import ranges as ranges_module
from quorate_store.etcd.client import StoreClient
from quorate_store.etcd.errors import AnswerTooLarge
from quorate_store.etcd.ranges import read_range
from quorate_store.model import RANGE_ALL, RangeOp
from support.scripted_store import Request, scripted_store

ALL = RangeOp(b"k", RANGE_ALL)
GRPC_BYTES_MAX = 4 * 1024 * 1024
"""Of an answer, with etcd 3.4.0 to 3.4.16."""


@dataclass
class Keys:
    """A store with these values, under keys in order; it sends no message that is larger."""

    values: list[bytes]
    message_bytes_max: int = 1 << 40
    limits: list[int] = field(default_factory=list)
    """Of each request."""

    async def answer(self, request: Request) -> None:
        body = msgspec.json.decode(request.body)
        self.limits.append(int(body.get("limit", "0")))
        first = base64.b64decode(body["key"])
        left = [(key, value) for key, value in self._all() if key >= first]
        found = left[: self.limits[-1] or None] if body["range_end"] else left[:1]
        size_bytes = sum(len(value) + 50 for _, value in found)
        if size_bytes > self.message_bytes_max:
            text = f"grpc: received message larger than max ({size_bytes} vs. {self.message_bytes_max})"
            request.answer({"error": text, "message": text, "code": 8}, 429)
            return
        kvs = [{"key": base64.b64encode(key), "value": base64.b64encode(value)} for key, value in found]
        kvs = [{name: text.decode() for name, text in kv.items()} for kv in kvs]
        request.answer(
            {"header": {"revision": "9"}, "kvs": kvs, "more": len(left) > len(found), "count": str(len(left))}
        )

    def _all(self) -> list[tuple[bytes, bytes]]:
        return [(b"k%06d" % number, value) for number, value in enumerate(self.values)]


@asynccontextmanager
async def client_of(keys: Keys) -> AsyncIterator[StoreClient]:
    async with scripted_store(keys.answer) as server:
        client = StoreClient([HostPort.parse(server.endpoint)], SystemClock(), {})
        yield client
        client.close()


async def test_a_page_that_the_store_cannot_send_is_asked_for_with_fewer_keys() -> None:
    keys = Keys([b"x" * 4_300] * 2_500, GRPC_BYTES_MAX)
    async with client_of(keys) as client:
        found = await read_range(client, ALL, serializable=False)
    assert [kv.value for kv in found.kvs] == keys.values
    assert (found.count, found.more) == (2_500, False)
    assert keys.limits[:2] == [1_000, 125]


async def test_a_page_is_no_longer_than_an_attempt_has_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranges_module.PAGE_BYTES_MAX <= 8 * 1024 * 1024
    monkeypatch.setattr(ranges_module, "PAGE_BYTES_MAX", 10_000)
    keys = Keys([b"x" * 100] * 300)
    async with client_of(keys) as client:
        assert len((await read_range(client, ALL, serializable=False)).kvs) == 300
        assert keys.limits[:3] == [1_000, 125, 15]


async def test_a_limit_of_few_keys_is_shrunk_from_where_it_is() -> None:
    keys = Keys([b"x" * 1_000_000] * 20, GRPC_BYTES_MAX)
    async with client_of(keys) as client:
        found = await read_range(client, RangeOp(b"k", RANGE_ALL, 10), serializable=False)
    assert (len(found.kvs), found.more) == (10, True)
    assert keys.limits[:2] == [10, 1]


async def test_one_value_may_be_larger_than_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges_module, "PAGE_BYTES_MAX", 1_000)
    async with client_of(Keys([b"x" * 2_000] * 3)) as client:
        assert len((await read_range(client, ALL, serializable=False)).kvs) == 3
        assert len((await read_range(client, RangeOp(b"k000001"), serializable=False)).kvs) == 1


async def test_one_value_that_the_store_cannot_send_is_refused() -> None:
    async with client_of(Keys([b"x" * 2_000] * 3, 1_000)) as client:
        for op in (ALL, RangeOp(b"k000001")):
            with pytest.raises(AnswerTooLarge):
                await read_range(client, op, serializable=False)


async def test_a_range_that_is_larger_than_memory_should_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges_module, "RANGE_BYTES_MAX", 2_500 * 107)
    keys = Keys([b"x" * 100] * 5_000)
    async with client_of(keys) as client:
        with pytest.raises(InvalidRequest, match="with a limit"):
            await read_range(client, ALL, serializable=False)
        assert len(keys.limits) == 3, "it ends with the page that is over the limit"
        assert len((await read_range(client, RangeOp(b"k", RANGE_ALL, 2_500), serializable=False)).kvs) == 2_500
