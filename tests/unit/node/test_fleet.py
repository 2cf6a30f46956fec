"""The nodes that are up hold a key by a lease; all of them are asked at once, and who is silent is named."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.errors import NotProposed, QuorateError, Unavailable
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_node import fleet
from quorate_node.fleet import (
    ANSWER_BYTES_MAX,
    NODE_TTL_S,
    NODES_PREFIX,
    RENEW_INTERVAL_S,
    RETRY_INTERVAL_S,
    FleetMembership,
    StoreFleet,
)
from quorate_store.apps import FleetAnswer, FleetNode
from quorate_store.model import EventKind
from quorate_store.port import Store
from starlette.responses import Response
from structlog.testing import capture_logs
from support.node_app import served
from support.store_local import local_store

OWN = FleetNode("n1", "http://127.0.0.1")
KEY = NODES_PREFIX + b"n1"
LOOPBACK = HostPort("127.0.0.1", 0)


class DrivenWait:
    """Stands for sleeping: says when it was asked and for how long, and ends when told."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[float] = asyncio.Queue()
        self._permits = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self._asked.put_nowait(seconds)
        await self._permits.acquire()

    async def asked_s(self) -> float:
        async with asyncio.timeout(10):
            return await self._asked.get()

    def end(self) -> None:
        self._permits.release()


class SilentStore:
    """A real store that never answers when a lease is to be ended."""

    def __init__(self, store: Store) -> None:
        self.lease_grant, self.txn = store.lease_grant, store.txn

    async def lease_revoke(self, _lease: int) -> None:
        await asyncio.get_running_loop().create_future()


class LeaderlessStore:
    """A real store whose writes can be made to fail, or all of it (`is_away`)."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.error: QuorateError | None = None
        self.is_away = False

    def __getattr__(self, name: str) -> Any:
        if self.error is not None and (self.is_away or name.startswith(("put", "txn", "lease"))):
            raise self.error
        return getattr(self.store, name)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path, clock: ManualClock) -> AsyncIterator[LeaderlessStore]:
    async with local_store(tmp_path, clock) as local:
        yield LeaderlessStore(local)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskOwner]:
    failures: list[BaseException] = []
    async with TaskOwner("test", failures.append) as owner:
        yield owner
    assert failures == []


async def held(store: LeaderlessStore) -> list[int]:
    """The lease of this node's key, if it is there."""
    return [kv.lease for kv in (await store.store.range(KEY)).kvs]


async def test_a_node_is_announced_under_a_lease_and_renews_it(
    store: LeaderlessStore, clock: ManualClock, tasks: TaskOwner
) -> None:
    wait = DrivenWait()
    FleetMembership(store, OWN, wait).join(tasks)
    assert await wait.asked_s() == RENEW_INTERVAL_S
    [lease] = await held(store)
    for _ in range(5):
        clock.advance(NODE_TTL_S - 1)
        wait.end()
        await wait.asked_s()
    assert (await store.store.lease_time_to_live(lease)).remaining_ttl_s > NODE_TTL_S - 1
    assert await held(store) == [lease]


async def test_a_node_that_cannot_be_withdrawn_says_why(
    store: LeaderlessStore, tasks: TaskOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "LEAVE_TIMEOUT_S", 0.05)
    wait = DrivenWait()
    membership = FleetMembership(SilentStore(store.store), OWN, wait)  # type: ignore[arg-type]
    membership.join(tasks)
    await wait.asked_s()
    with capture_logs() as logs:
        await membership.leave()
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("node_not_withdrawn", "the store did not end its lease within 0.05 s")
    ]


async def test_a_node_whose_lease_has_ended_announces_itself_again(store: LeaderlessStore, tasks: TaskOwner) -> None:
    wait = DrivenWait()
    FleetMembership(store, OWN, wait).join(tasks)
    await wait.asked_s()
    [lost] = await held(store)
    await store.store.lease_revoke(lost)
    assert await held(store) == []
    wait.end()
    assert await wait.asked_s() == 0.0
    wait.end()
    assert await wait.asked_s() == RENEW_INTERVAL_S
    [again] = await held(store)
    assert again != lost


async def test_without_a_leader_a_node_tries_on_and_is_announced_once_there_is_one(
    store: LeaderlessStore, tasks: TaskOwner
) -> None:
    wait = DrivenWait()
    store.error = NotProposed("there is no leader")
    FleetMembership(store, OWN, wait).join(tasks)
    assert await wait.asked_s() == RETRY_INTERVAL_S
    assert await held(store) == []
    store.error = None
    wait.end()
    assert await wait.asked_s() == RENEW_INTERVAL_S
    assert len(await held(store)) == 1


async def test_a_node_that_was_killed_takes_its_own_place_again_at_once(
    store: LeaderlessStore, tasks: TaskOwner
) -> None:
    await store.put(KEY, b'{"url":"http://127.0.0.1"}', lease=(await store.lease_grant(NODE_TTL_S)).lease)
    [former] = await held(store)
    wait = DrivenWait()
    FleetMembership(store, OWN, wait).join(tasks)
    assert await wait.asked_s() == RENEW_INTERVAL_S
    [lease] = await held(store)
    assert lease != former


async def test_a_node_that_was_killed_and_stops_before_it_is_announced_again_leaves_nothing(
    store: LeaderlessStore, tasks: TaskOwner
) -> None:
    await store.put(KEY, b'{"url":"http://127.0.0.1"}', lease=(await store.lease_grant(NODE_TTL_S)).lease)
    await leave_unannounced(store, tasks)
    assert await held(store) == []


async def test_a_node_that_stops_before_it_is_announced_leaves_alone_whoever_has_its_name(
    store: LeaderlessStore, tasks: TaskOwner
) -> None:
    await store.put(KEY, b'{"url":"http://10.0.0.2"}')
    await leave_unannounced(store, tasks)
    assert len(await held(store)) == 1


async def leave_unannounced(store: LeaderlessStore, tasks: TaskOwner) -> None:
    """As `OWN`, after an attempt while there was no leader."""
    wait = DrivenWait()
    membership = FleetMembership(store, OWN, wait)
    store.error = NotProposed("there is no leader")
    membership.join(tasks)
    assert await wait.asked_s() == RETRY_INTERVAL_S
    store.error = None
    await membership.leave()


async def test_two_nodes_of_one_name_do_not_push_each_other_out(
    store: LeaderlessStore, clock: ManualClock, tasks: TaskOwner
) -> None:
    """The second waits, and says for whom, until the first is gone."""
    first, second = DrivenWait(), DrivenWait()
    holder = FleetMembership(store, OWN, first)
    holder.join(tasks)
    await first.asked_s()
    [lease] = await held(store)
    with capture_logs() as logs:
        FleetMembership(store, FleetNode("n1", "http://10.0.0.2"), second).join(tasks)
        assert await second.asked_s() == RETRY_INTERVAL_S
        second.end()
        assert await second.asked_s() == RETRY_INTERVAL_S
    assert await held(store) == [lease]
    [told] = logs
    assert told["event"] == "node_not_announced_yet"
    assert OWN.url in told["reason"]
    await holder.leave()
    second.end()
    assert await second.asked_s() == RENEW_INTERVAL_S
    assert (await store.range(KEY)).kvs[0].value == b'{"url":"http://10.0.0.2"}'


async def test_a_node_says_which_apps_it_runs(store: LeaderlessStore, tasks: TaskOwner) -> None:
    """So that work of an app is not given to a node that does not run it."""
    wait = DrivenWait()
    FleetMembership(store, OWN, wait, apps=["registry"]).join(tasks)
    await wait.asked_s()
    (announced,) = (await store.store.range(KEY)).kvs
    assert announced.value == b'{"url":"%s","apps":["registry"]}' % OWN.url.encode()


async def test_a_node_that_dies_is_forgotten_when_its_lease_ends(
    store: LeaderlessStore, clock: ManualClock, tasks: TaskOwner
) -> None:
    wait = DrivenWait()
    FleetMembership(store, OWN, wait).join(tasks)
    await wait.asked_s()
    async with store.store.watch(KEY) as watch, asyncio.timeout(10):
        clock.advance(NODE_TTL_S + 5)
        async for batch in watch:
            if any(event.kind is EventKind.DELETE for event in batch.events):
                break
    assert await held(store) == []


async def test_a_node_that_stops_takes_its_key_away_and_does_not_come_back(
    store: LeaderlessStore, tasks: TaskOwner
) -> None:
    wait = DrivenWait()
    membership = FleetMembership(store, OWN, wait)
    membership.join(tasks)
    await wait.asked_s()
    await membership.leave()
    wait.end()
    assert await held(store) == []
    assert len(tasks) == 0


async def test_leaving_without_a_leader_does_not_fail(store: LeaderlessStore, tasks: TaskOwner) -> None:
    wait = DrivenWait()
    membership = FleetMembership(store, OWN, wait)
    membership.join(tasks)
    await wait.asked_s()
    store.error = NotProposed("there is no leader")
    await membership.leave()
    assert len(await held(store)) == 1


async def test_the_fleet_is_who_holds_a_key_and_always_this_node(store: LeaderlessStore) -> None:
    await store.put(NODES_PREFIX + b"n2", b'{"url": "http://127.0.0.1:1"}')
    await store.put(NODES_PREFIX + b"n3", b"damaged")
    async with StoreFleet(store, OWN, create_app(surface())) as fleet:
        assert list(await fleet.nodes()) == [OWN, FleetNode("n2", "http://127.0.0.1:1")]


async def test_while_the_store_is_away_the_fleet_is_who_was_last_seen(store: LeaderlessStore) -> None:
    await store.put(NODES_PREFIX + b"n2", b'{"url": "http://127.0.0.1:1"}')
    async with StoreFleet(store, OWN, create_app(surface())) as fleet:
        store.error, store.is_away = Unavailable("it is away"), True
        assert list(await fleet.nodes()) == [OWN]
        store.error = None
        both = list(await fleet.nodes())
        store.error = Unavailable("it is away again")
        assert list(await fleet.nodes()) == both == [OWN, FleetNode("n2", "http://127.0.0.1:1")]


def surface() -> Surface:
    return Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None))


def answering() -> FastAPI:
    """A node's surface with good answers, and with bad ones."""
    api = create_app(surface())
    never = asyncio.Event()

    async def good() -> dict[str, str]:
        return {"said": "yes"}

    async def huge() -> Response:
        return Response(b" " * (ANSWER_BYTES_MAX + 1))

    async def garbage() -> Response:
        return Response(b"{")

    async def silent() -> None:
        await never.wait()

    async def crashing() -> None:
        raise RuntimeError("a defect")

    for endpoint in (good, huge, garbage, silent, crashing):
        api.get("/" + endpoint.__name__)(endpoint)
    return api


async def asked(store: LeaderlessStore, path: str, timeout_s: float = 5.0) -> tuple[FleetAnswer, FleetAnswer]:
    """What this node and another one say, asked together."""
    async with served(answering()) as url, StoreFleet(store, OWN, answering()) as fleet:
        await store.put(NODES_PREFIX + b"n2", b'{"url": "%s"}' % url.encode())
        own, other = await fleet.ask_all(path, timeout_s)
    assert (own.node.name, other.node.name) == ("n1", "n2")
    return own, other


async def test_all_nodes_are_asked_this_one_without_the_network(store: LeaderlessStore) -> None:
    own, other = await asked(store, "/good")
    assert (own.body, own.error) == (other.body, other.error) == ({"said": "yes"}, None)


@pytest.mark.parametrize(
    ("path", "said"),
    [("/huge", "over 16777216 bytes"), ("/garbage", "makes no sense"), ("/absent", "status 404"),
     ("/crashing", "status 500")],
)  # fmt: skip
async def test_an_answer_that_cannot_be_used_is_an_error_and_names_no_trace(
    store: LeaderlessStore, path: str, said: str
) -> None:
    for answer in await asked(store, path):
        assert answer.body is None
        assert said in str(answer.error)


async def test_a_node_that_does_not_answer_in_time_holds_nobody_up(store: LeaderlessStore) -> None:
    for answer in await asked(store, "/silent", timeout_s=0.05):
        assert answer.error == "no answer within 0.05 s"


async def test_a_node_that_is_gone_is_named_with_why(store: LeaderlessStore) -> None:
    await store.put(NODES_PREFIX + b"n2", b'{"url": "http://127.0.0.1:1"}')
    await store.put(NODES_PREFIX + b"n3", b'{"url": "http://[broken"}')
    async with StoreFleet(store, OWN, answering()) as fleet:
        own, gone, broken = await fleet.ask_all("/good")
    assert own.body == {"said": "yes"}
    assert str(gone.error).startswith("no answer: ")
    assert str(broken.error).startswith("no answer: ")
