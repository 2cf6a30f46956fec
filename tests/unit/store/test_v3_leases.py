"""`/v3/lease`: what time decides, streams of keepalives in whatever pieces they come, and leases of the platform."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.errors import InvalidRequest, NotProposed
from quorate_core.settings import HostPort
from quorate_store.model import LeaseStatus, MemberHead
from quorate_store.raft_engine import RaftStore
from quorate_store.v3.headers import Headers
from quorate_store.v3.lease import LeaseEndpoints
from quorate_store.v3.reserved import Guard
from support.store_local import local_store

CREDENTIAL = "known to the platform's own nodes"


class CountingStore:
    """As much of a store as leases need, over the real one; counts what it is asked."""

    def __init__(self, store: RaftStore, *, knows_leases: bool) -> None:
        self._store = store
        self.keepalives: list[list[int]] = []
        self.questions = 0
        self.failure: NotProposed | None = None
        if knows_leases:
            self.granted_ttl_s = store.granted_ttl_s
        self.lease_grant = store.lease_grant
        self.lease_revoke = store.lease_revoke

    def head(self) -> MemberHead:
        return self._store.head()

    async def lease_keepalive(self, leases: Sequence[int]) -> Sequence[int]:
        if self.failure is not None:
            raise self.failure
        self.keepalives.append(list(leases))
        return await self._store.lease_keepalive(leases)

    async def lease_time_to_live(self, lease: int, *, keys: bool = False) -> LeaseStatus:
        self.questions += 1
        return await self._store.lease_time_to_live(lease, keys=keys)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path, clock: ManualClock) -> AsyncIterator[RaftStore]:
    async with local_store(tmp_path, clock=clock) as opened:
        yield opened


@pytest.fixture
async def client(store: RaftStore) -> AsyncIterator[httpx.AsyncClient]:
    address = HostPort.parse("127.0.0.1:8501")
    api = create_app(Surface("node", Protection.for_address(address, address, None)))
    endpoints_on(store).mount(api)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://127.0.0.1") as made:
        yield made


def endpoints_on(store: Any) -> LeaseEndpoints:
    return LeaseEndpoints(store, Headers(store, "cluster"), Guard(CREDENTIAL))


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def renewed(endpoints: LeaseEndpoints, *chunks: bytes) -> list[tuple[int, int]]:
    """(lease, time to live) of each line; 0 where it is left out."""
    lines = b"".join([line async for line in endpoints.keepalive(pieces(*chunks))]).splitlines()
    results = [json.loads(line)["result"] for line in lines]
    return [(int(result.get("ID", 0)), int(result.get("TTL", 0))) for result in results]


async def test_what_is_left_is_told_in_whole_seconds_that_are_surely_left(
    client: httpx.AsyncClient, clock: ManualClock
) -> None:
    await client.post("/v3/lease/grant", json={"ID": 7, "TTL": 60})
    clock.advance(0.25)
    answer = (await client.post("/v3/lease/timetolive", json={"ID": 7})).json()
    assert (answer["TTL"], answer["grantedTTL"]) == ("59", "60")
    clock.advance(20)
    assert (await client.post("/v3/lease/timetolive", json={"ID": 7})).json()["TTL"] == "39"
    await client.post("/v3/lease/keepalive", json={"ID": 7})
    assert (await client.post("/v3/lease/timetolive", json={"ID": 7})).json()["TTL"] == "60"


async def test_keepalives_that_come_together_go_to_the_store_in_one_call(store: RaftStore) -> None:
    counting = CountingStore(store, knows_leases=True)
    for lease, ttl_s in ((7, 70), (8, 80)):
        await store.lease_grant(ttl_s, lease)
    wanted = b'{"ID":7}{"ID":"8"} {"ID":99}\n{"ID":7}{}'
    assert await renewed(endpoints_on(counting), wanted) == [(7, 70), (8, 80), (99, 0), (7, 70), (0, 0)]
    assert counting.keepalives == [[7, 8, 99]]
    assert counting.questions == 0


async def test_messages_are_read_wherever_the_body_is_cut(store: RaftStore) -> None:
    for lease in (71, 72):
        await store.lease_grant(60, lease)
    body = b'{"ID":71}\n {"ID":"72"}'
    for cut in range(len(body) + 1):
        endpoints = endpoints_on(CountingStore(store, knows_leases=True))
        assert await renewed(endpoints, body[:cut], body[cut:]) == [(71, 60), (72, 60)]
    bytewise = [body[at : at + 1] for at in range(len(body))]
    assert await renewed(endpoints_on(store), *bytewise) == [(71, 60), (72, 60)]


async def test_each_piece_is_answered_before_the_next_is_read(store: RaftStore) -> None:
    """A client sends the next keepalive when it has heard of the one before."""
    await store.lease_grant(60, 7)
    heard: list[bytes] = []

    async def polite() -> AsyncIterator[bytes]:
        for number in range(3):
            assert len(heard) == number
            yield b'{"ID":7}'

    async for line in endpoints_on(store).keepalive(polite()):
        heard.append(line)  # noqa: PERF401 - the body looks at it meanwhile
    assert len(heard) == 3


async def test_an_engine_that_does_not_know_times_to_live_at_once_is_asked(store: RaftStore) -> None:
    counting = CountingStore(store, knows_leases=False)
    await store.lease_grant(60, 7)
    assert await renewed(endpoints_on(counting), b'{"ID":7}{"ID":8}{"ID":7}') == [(7, 60), (8, 0), (7, 60)]
    assert counting.questions == 1


async def test_what_was_asked_before_a_message_that_is_none_is_answered(store: RaftStore) -> None:
    await store.lease_grant(60, 7)
    lines = endpoints_on(store).keepalive(pieces(b'{"ID":7} {"ID":"x"} {"ID":8}'))
    assert json.loads(await anext(lines))["result"]["ID"] == "7"
    with pytest.raises(InvalidRequest, match="invalid character 'x' looking for beginning of value"):
        await anext(lines)


@pytest.mark.parametrize("end", [b'{"ID":7', b'{"ID":"7', b"{", b'{"ID":7}{'])
async def test_a_body_that_ends_within_a_message_is_refused(store: RaftStore, end: bytes) -> None:
    with pytest.raises(InvalidRequest, match="unexpected EOF"):
        await renewed(endpoints_on(store), end)


async def test_when_the_store_cannot_renew_now_the_stream_says_so(store: RaftStore) -> None:
    counting = CountingStore(store, knows_leases=True)
    counting.failure = NotProposed("there is no leader")
    with pytest.raises(NotProposed):
        await renewed(endpoints_on(counting), b'{"ID":7}')


async def test_a_lease_that_has_ended_is_not_renewed(
    store: RaftStore, client: httpx.AsyncClient, clock: ManualClock
) -> None:
    async with store.watch(b"k") as watch:
        await client.post("/v3/lease/grant", json={"ID": 7, "TTL": 5})
        await store.put(b"k", b"v", lease=7)
        clock.advance(6)
        async for batch in watch:
            if any(event.kv.version == 0 for event in batch.events):
                break
    assert await renewed(endpoints_on(store), b'{"ID":7}') == [(7, 0)]
    answer = (await client.post("/v3/lease/timetolive", json={"ID": 7})).json()
    assert (answer["TTL"], answer.get("grantedTTL")) == ("-1", None)
    assert "leases" not in (await client.post("/v3/lease/leases")).json()


async def test_a_lease_that_holds_keys_of_the_platform_is_not_ended_by_others(
    store: RaftStore, client: httpx.AsyncClient
) -> None:
    await store.lease_grant(60, 7)
    await store.put(b"quorate/registry/x", b"v", lease=7)
    for path in ("/v3/lease/revoke", "/v3/kv/lease/revoke", "/v3beta/lease/revoke"):
        response = await client.post(path, json={"ID": 7})
        assert (response.status_code, response.json()["code"]) == (403, 7)
    assert (await store.range(b"quorate/registry/x")).count == 1
    response = await client.post("/v3/lease/revoke", json={"ID": 7}, headers={"quorate-platform": CREDENTIAL})
    assert response.status_code == 200
    assert (await store.range(b"quorate/registry/x")).count == 0


async def test_all_leases_are_listed_in_order(store: RaftStore, client: httpx.AsyncClient) -> None:
    for lease in (9, 2**62, 8):
        await store.lease_grant(60, lease)
    listed = (await client.post("/v3/lease/leases")).json()["leases"]
    assert [int(one["ID"]) for one in listed] == [8, 9, 2**62]
