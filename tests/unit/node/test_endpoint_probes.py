"""An external store's endpoints are asked all the time: each is reported as it says, and serving needs a leader."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.errors import NotImplementedHere
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_node import endpoint_probes
from quorate_node.cluster import Identity
from quorate_node.endpoint_probes import ANSWER_BYTES_MAX, PROBE_INTERVAL_S, SERVING_WITHIN_S, EndpointProbes
from quorate_node.external_store import ExternalView, MembersElsewhere
from quorate_node.store_url import StoreUrl
from starlette.responses import Response
from support import plain_http
from support.node_app import served

LOOPBACK = HostPort("127.0.0.1", 0)
NAMES = {"10": "e1", "11": "e2"}
MEMBERS = {"members": [{"ID": member, "name": name} for member, name in NAMES.items()]}


def status(member: str = "10", leader: str = "10", term: int = 2, revision: int = 7, **more: Any) -> dict[str, Any]:
    """As etcd writes it: numbers as text, and nothing where there is nothing."""
    return {
        "header": {"cluster_id": "1", "member_id": member, "revision": str(revision), "raft_term": str(term)},
        "version": "3.4.23", "dbSize": "20480", "raftIndex": "9", "raftTerm": str(term), "raftAppliedIndex": "8",
        **({"leader": leader} if leader else {}), **more,
    }  # fmt: skip


class Endpoint:
    """One endpoint of a store, which answers what it is told to."""

    def __init__(self) -> None:
        self.answer: Any = status()
        self.status_code = 200
        self.is_silent = False
        self.released = asyncio.Event()
        self.headers: list[dict[str, str]] = []
        self.api: FastAPI = create_app(Surface("etcd", Protection.for_address(LOOPBACK, LOOPBACK, None)))
        self.api.router.add_route("/v3/maintenance/status", self._status, methods=["POST"])
        self.api.router.add_route("/v3/cluster/member/list", self._list, methods=["POST"])

    async def _status(self, request: Any) -> Response:
        self.headers.append(dict(request.headers))
        if self.is_silent:
            await self.released.wait()
        content = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return Response(content, self.status_code)

    async def _list(self, _request: Any) -> Response:
        return Response(json.dumps(MEMBERS))


Start = Callable[..., Any]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with plain_http.async_client() as client:
        yield client


@pytest.fixture
async def start(clock: ManualClock) -> AsyncIterator[Start]:
    """Probes of so many endpoints of this machine, and of one that nobody listens on if `with_absent`."""
    async with AsyncExitStack() as stack:

        async def start(*endpoints: Endpoint, with_absent: bool = False) -> EndpointProbes:
            urls = [await stack.enter_async_context(served(endpoint.api)) for endpoint in endpoints]
            addresses = [url.removeprefix("http://") for url in urls] + ["127.0.0.1:1"] * with_absent
            return EndpointProbes(StoreUrl.parse("etcd://" + ",".join(addresses)), clock, {})

        yield start


async def test_before_anybody_was_asked_a_node_is_not_ready_and_says_so(start: Start) -> None:
    probes = await start(Endpoint())
    assert "it was not asked yet" in str(probes.why_not_serving())


async def test_each_endpoint_is_reported_as_it_says_and_the_silent_one_with_the_reason(
    start: Start, client: httpx.AsyncClient
) -> None:
    leading, following = Endpoint(), Endpoint()
    following.answer = status("11", revision=6, isLearner=True)
    probes = await start(leading, following, with_absent=True)
    await probes.ask_all(client)
    one, two, absent = probes.report()
    assert (one.name, one.role, one.version, one.revision, one.store_bytes) == ("e1", "leader", "3.4.23", 7, 20480)
    assert (two.name, two.role, two.error) == ("e2", "learner", None)
    assert (absent.address, absent.name, absent.role) == ("127.0.0.1:1", "", "")
    assert "connect" in str(absent.error)
    assert (probes.leader, probes.why_not_serving()) == ("e1", None)


async def test_a_store_without_a_leader_answers_and_does_not_serve(
    start: Start, client: httpx.AsyncClient, clock: ManualClock
) -> None:
    """Its clients wait through an election, so the node stays ready for as long as one may take."""
    endpoint = Endpoint()
    probes = await start(endpoint)
    await probes.ask_all(client)
    endpoint.answer = status(leader="")
    clock.advance(SERVING_WITHIN_S)
    await probes.ask_all(client)
    assert (probes.why_not_serving(), probes.leader) == (None, "")
    clock.advance(0.1)
    assert "it knows no leader" in str(probes.why_not_serving())
    endpoint.answer = status(term=3)
    await probes.ask_all(client)
    assert (probes.why_not_serving(), probes.leader) == (None, "e1")


async def test_who_leads_is_the_word_of_the_highest_term(start: Start, client: httpx.AsyncClient) -> None:
    deposed, current = Endpoint(), Endpoint()
    deposed.answer, current.answer = status("10", "10", term=2), status("11", "11", term=3)
    probes = await start(deposed, current)
    await probes.ask_all(client)
    assert probes.leader == "e2"


async def test_an_unknown_member_is_shown_by_its_id_as_etcds_tools_print_it(
    start: Start, client: httpx.AsyncClient
) -> None:
    endpoint = Endpoint()
    endpoint.answer = status("10", "10276657743932975437")
    probes = await start(endpoint)
    await probes.ask_all(client)
    assert probes.leader == "8e9e05c52164694d"


@pytest.mark.parametrize(
    ("answer", "status_code", "said"),
    [
        (b"{", 200, "does not answer as etcd does"),
        (b"\xff", 200, "does not answer as etcd does"),
        (b"[]", 200, "does not answer as etcd does"),
        ({"raftTerm": "many"}, 200, "'many' is no number"),
        (b" " * (ANSWER_BYTES_MAX + 1), 200, f"over {ANSWER_BYTES_MAX} bytes"),
        ({"detail": "a token is required here"}, 401, "status 401: a token is required here"),
        ({"error": "x", "message": "etcdserver: no leader", "code": 14}, 503, "status 503: etcdserver: no leader"),
        (b"<html>", 404, "status 404: without a reason"),
    ],
)
async def test_what_is_no_answer_of_a_store_is_that_endpoints_error(
    start: Start, client: httpx.AsyncClient, answer: Any, status_code: int, said: str
) -> None:
    endpoint = Endpoint()
    endpoint.answer, endpoint.status_code = answer, status_code
    probes = await start(endpoint)
    await probes.ask_all(client)
    assert said in str(probes.states[0].error)
    assert said in str(probes.why_not_serving())


async def test_an_endpoint_that_hangs_is_given_up_and_keeps_what_it_said_before(
    start: Start, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, other = Endpoint(), Endpoint()
    probes = await start(endpoint, other)
    await probes.ask_all(client)
    endpoint.is_silent = True
    monkeypatch.setattr(endpoint_probes, "PROBE_TIMEOUT_S", 0.5)
    await probes.ask_all(client)
    hanging, well = probes.report()
    assert (hanging.error, hanging.name, hanging.revision) == ("no answer within 0.5 s", "e1", 7)
    assert well.error is None
    endpoint.released.set()


async def test_the_probes_ask_again_and_again_with_the_stores_credentials(clock: ManualClock) -> None:
    endpoint = Endpoint()
    rounds: asyncio.Queue[float] = asyncio.Queue()

    async def wait(seconds: float) -> None:
        rounds.put_nowait(seconds)
        await asyncio.sleep(0)

    async with served(endpoint.api) as url, TaskOwner("test") as tasks:
        address = url.removeprefix("http://")
        probes = EndpointProbes(StoreUrl.parse(f"etcd://{address}"), clock, {"authorization": "Bearer t"}, None, wait)
        tasks.start(probes.run(), "probes")
        async with asyncio.timeout(10):
            assert [await rounds.get(), await rounds.get()] == [PROBE_INTERVAL_S] * 2
    assert {headers["authorization"] for headers in endpoint.headers} == {"Bearer t"}


async def test_a_node_on_the_store_says_what_it_stands_on_without_asking_it(
    start: Start, client: httpx.AsyncClient
) -> None:
    behind, ahead = Endpoint(), Endpoint()
    behind.answer, ahead.answer = status("11", revision=5), status("10", revision=7)
    probes = await start(behind, ahead, with_absent=True)
    await probes.ask_all(client)
    view = ExternalView(probes)
    own = await view.node(Identity("tier-1", "http://t1", ("registry",)), 3.5)
    assert (own.name, own.url, own.role, own.apps, own.uptime_s) == ("tier-1", "http://t1", "api", ["registry"], 3.5)
    assert (own.term, own.commit_index, own.applied_index, own.revision, own.store_bytes) == (2, 9, 8, 7, 20480)
    assert own.connected == [state.address for state in probes.states[:2]]
    assert own.store is not None
    assert (own.store.url, own.store.leader, len(own.store.endpoints)) == (str(probes.store_url), "e1", 3)
    assert view.leader(own, []) == "e1"


async def test_members_are_not_changed_through_a_node_that_is_none() -> None:
    members = MembersElsewhere(StoreUrl.parse("etcd://a:1"))
    with pytest.raises(NotImplementedHere, match="stands on etcd://a:1"):
        await members.list()
