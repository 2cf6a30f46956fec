"""Leases of a store elsewhere, which answers late, in part, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from quorate_core.clock import ManualClock
from quorate_core.errors import Forbidden, NotFound, NotProposed, TooManyRequests
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_store.etcd import EtcdStore
from quorate_store.etcd import leases as leases_module
from quorate_store.etcd.leases import KEEPALIVE_REQUESTS_MAX, KEEPALIVES_A_REQUEST
from support.scripted_store import Request, scripted_store

PATIENCE_S = 10.0
HEADER = {"cluster_id": "1", "member_id": "2", "revision": "5", "raft_term": "3"}

OfLeases = Callable[[Request, list[int]], Awaitable[None]]


@asynccontextmanager
async def store_of(answer: OfLeases) -> AsyncIterator[EtcdStore]:
    """`answer` gets what is about leases, with the ids that it names."""

    async def dispatch(request: Request) -> None:
        if request.path == "/v3/kv/range":
            request.answer({"header": HEADER})
        else:
            await answer(request, [int(msgspec.json.decode(line)["ID"]) for line in request.body.splitlines()])

    async with scripted_store(dispatch) as server, TaskOwner("test") as tasks, asyncio.timeout(PATIENCE_S):
        store = EtcdStore([HostPort.parse(server.endpoint)], tasks, ManualClock())
        yield store
        await store.close()


def renew(request: Request, leases: list[int]) -> None:
    request.begin_stream()
    for lease in leases:
        request.send_result({"header": HEADER, "ID": str(lease), "TTL": "10"})
    request.writer.write(b"0\r\n\r\n")


async def test_a_request_renews_few_and_all_of_a_call_are_renewed() -> None:
    asked: list[int] = []

    async def answer(request: Request, leases: list[int]) -> None:
        assert len(leases) <= KEEPALIVES_A_REQUEST <= 20
        asked.extend(leases)
        renew(request, leases)

    async with store_of(answer) as store:
        assert await store.lease_keepalive(range(1, 1_000)) == []
    assert sorted(asked) == list(range(1, 1_000))


async def test_when_some_cannot_be_renewed_nothing_of_the_call_goes_on() -> None:
    is_left = asyncio.Event()
    is_asked = asyncio.Event()

    async def answer(request: Request, leases: list[int]) -> None:
        if 1 in leases:
            await is_asked.wait()
            refusal = {"grpc_code": 7, "message": "etcdserver: permission denied"}
            request.begin_stream()
            request.send(msgspec.json.encode({"error": refusal}) + b"\n")
            request.writer.write(b"0\r\n\r\n")
            return
        is_asked.set()
        await request.until_client_has_gone()
        is_left.set()

    async with store_of(answer) as store:
        with pytest.raises(Forbidden):
            await store.lease_keepalive(range(1, KEEPALIVES_A_REQUEST + 2))
        await is_left.wait()


async def test_who_finds_no_place_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "PLACE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(leases_module, "RENEWALS_WAITING_MAX", KEEPALIVE_REQUESTS_MAX + 1)
    under_way = asyncio.Queue[tuple[Request, list[int]]]()

    async def answer(request: Request, leases: list[int]) -> None:
        await under_way.put((request, leases))

    async with store_of(answer) as store, asyncio.TaskGroup() as group:
        calls = [group.create_task(store.lease_keepalive([lease])) for lease in range(1, KEEPALIVE_REQUESTS_MAX + 1)]
        asked = [await under_way.get() for _ in calls]
        late, over = await asyncio.gather(
            store.lease_keepalive([100]), store.lease_keepalive([101]), return_exceptions=True
        )
        assert (type(late), type(over)) == (NotProposed, TooManyRequests)
        for request, leases in asked:
            renew(request, leases)
    assert [call.result() for call in calls] == [[]] * len(calls)


async def test_a_lease_that_a_member_has_not_heard_of_yet_is_asked_for_twice() -> None:
    ttls = ["-1", "9", "-1", "-1"]

    async def answer(request: Request, leases: list[int]) -> None:
        request.answer({"header": HEADER, "ID": str(leases[0]), "TTL": ttls.pop(0), "grantedTTL": "10"})

    async with store_of(answer) as store:
        assert (await store.lease_time_to_live(7)).remaining_ttl_s == 9
        with pytest.raises(NotFound):
            await store.lease_time_to_live(7)
    assert ttls == []
