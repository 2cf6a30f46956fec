"""The registry's benchmarks: both sides are asked for the same, and no wrong answer is counted as a right one.

The servers here are a few lines that keep no data, but for what a test has them do wrong.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import parse_figures
from benchmarks.raw_http import HttpFailed
from benchmarks.registry import HEARTBEAT_LOADS, LIST_LOADS, RegistryScenario
from benchmarks.registry_client import Keeper, register
from benchmarks.registry_filled import RegistryFilledScenario
from benchmarks.registry_routing import RegistryRoutingScenario
from benchmarks.registry_sides import (
    KEPT,
    LARGE,
    NEW_FROM,
    SIDES,
    SMALL,
    EtcdSide,
    QuorateSide,
    WrongAnswer,
    id_of,
    service_of,
    spec_of,
)
from benchmarks.registry_watch import RegistryWatchScenario
from benchmarks.registry_watch_client import (
    IN_FORCE,
    WATCHED,
    FanOutFailed,
    FanOutStream,
    Tally,
    last_changes,
    measure,
    measure_when_told,
)
from benchmarks.run import CONTENDERS, scenarios

Reply = Callable[[str, str, bytes], tuple[int, bytes]]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
both = pytest.mark.parametrize("side", SIDES.values(), ids=lambda side: side.name)


@asynccontextmanager
async def served(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """The URL of a server whose connections `serve` takes; all of them are over at the end."""
    running: set[asyncio.Task[Any]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        writers.append(writer)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    started = await asyncio.start_server(run, "127.0.0.1", 0)
    async with started:
        yield f"http://127.0.0.1:{started.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*running)


async def next_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    """Method, path and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    method, path, _ = head.split("\r\n", 1)[0].split(" ")
    length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
    return method, path, await reader.readexactly(length)


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[str]:
    """`reply` gets method, path and body of each request, and gives status and body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            status, body = reply(*await next_request(reader))
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    async with served(serve) as url:
        yield url


def decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def test_every_scenario_can_be_asked_for_by_its_name() -> None:
    known = scenarios()
    for scenario in (RegistryScenario(), RegistryWatchScenario(), RegistryRoutingScenario(), RegistryFilledScenario()):
        assert scenario.name in known
    assert set(SIDES) <= set(CONTENDERS)


def test_every_bound_is_about_a_load_that_is_measured() -> None:
    for scenario in (RegistryWatchScenario(), RegistryRoutingScenario()):
        assert {bound.load for bound in scenario.bounds} <= {load.name for load in scenario.loads}


def test_instances_of_different_loads_are_never_the_same() -> None:
    ranges = [SMALL, LARGE, KEPT, range(NEW_FROM, NEW_FROM + 1)]
    services = [{service_of(number) for number in each} for each in ranges]
    assert all(not one & other for at, one in enumerate(services) for other in services[at + 1 :])
    assert [services[0], services[1]] == [{"list-10"}, {"list-1000"}]
    assert {load.path for load in LIST_LOADS} == {"list-10", "list-1000"}
    assert all(int(load.path) <= len(KEPT) for load in HEARTBEAT_LOADS)


def test_both_sides_register_the_same_under_the_same_names() -> None:
    (ours,) = QuorateSide().registration(7, 30)
    grant, put = EtcdSide().registration(7, 30)
    assert json.loads(ours.body) == spec_of(7, 30)
    key, value = (decoded(json.loads(put.body)[part]) for part in ("key", "value"))
    assert json.loads(value) == spec_of(7, 30)
    assert ours.path.endswith(f"/services/{service_of(7)}/instances/{id_of(7)}")
    assert key == f"bench/registry/{service_of(7)}/{id_of(7)}"
    assert json.loads(grant.body)["ID"] == json.loads(put.body)["lease"]
    assert json.loads(grant.body)["TTL"] == "30"


def test_a_range_of_etcds_is_that_of_the_service_and_of_nobody_else() -> None:
    asked = json.loads(EtcdSide().listing("list-10").body)
    begin, end = decoded(asked["key"]), decoded(asked["range_end"])
    assert begin <= "bench/registry/list-10/instance-1" < end
    assert not begin <= "bench/registry/list-1000/instance-1" < end


@pytest.mark.parametrize(
    ("side", "answer"),
    [
        (QuorateSide(), {"renewed": 2, "unknown": []}),
        (QuorateSide(), {"renewed": 3, "unknown": [{"service": "a", "id": "b"}]}),
        (QuorateSide(), {}),
        (QuorateSide(), []),
        (EtcdSide(), {"result": {"ID": "1", "TTL": "9"}}),
        (EtcdSide(), {"error": {"message": "no leader"}}),
    ],
)
def test_a_heartbeat_that_did_not_renew_all_three_is_a_wrong_answer(side: Any, answer: object) -> None:
    with pytest.raises(WrongAnswer):
        side.renewed(json.dumps(answer).encode(), 3)


def test_a_lease_that_has_ended_is_a_wrong_answer() -> None:
    alive, ended = b'{"result":{"ID":"1","TTL":"9"}}', b'{"result":{"ID":"2"}}'
    EtcdSide().renewed(b"\n".join([alive, alive]), 2)
    with pytest.raises(WrongAnswer):
        EtcdSide().renewed(b"\n".join([alive, ended]), 2)


@both
async def test_registrations_are_counted_when_all_of_their_calls_were_answered(side: Any) -> None:
    seen: list[str] = []

    def reply(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        seen.append(path)
        return 201, b"{}"

    async with server(reply) as url:
        figures = parse_figures(await register(side, url, iter(range(20)), 30, 4, None))
    assert figures.requests == 20
    assert len(seen) == 20 * len(side.registration(0, 30))


@both
async def test_a_registration_that_is_refused_ends_it_all(side: Any) -> None:
    async with server(lambda *_: (503, b"busy")) as url:
        with pytest.raises(HttpFailed, match="503: b'busy'"):
            await register(side, url, iter(range(20)), 30, 4, None)


def all_renewed(_method: str, path: str, body: bytes) -> tuple[int, bytes]:
    if path.startswith("/v3/"):
        return 200, b'{"result":{"TTL":"9"}}\n' * body.count(b'"ID"')
    return 200, b'{"renewed":%d,"unknown":[]}' % len(json.loads(body)["instances"])


@both
async def test_a_keeper_renews_everybody_once_in_an_interval_at_all_members(side: Any) -> None:
    asked: list[str] = []

    def reply(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        asked.append(path)
        return all_renewed(method, path, body)

    async with server(reply) as one, server(reply) as other:
        keeper = Keeper(side, [one, other], range(100), batch=20, interval_s=0.2)
        figures = parse_figures(await keeper.run(0.4))
    assert (figures.requests, figures.failed, figures.extra["batches"]) == (200, 0, 10)
    assert len(asked) == 10


async def test_a_keeper_whose_instances_are_not_known_has_failed() -> None:
    unknown = b'{"renewed":19,"unknown":[{"namespace":"default","service":"a","id":"b"}]}'
    async with server(lambda *_: (200, unknown)) as url:
        said = await Keeper(SIDES["quorate"], [url], range(20), 20, 0.1).run(0.1)
    assert said.startswith('answered with b\'{"renewed":19')
    with pytest.raises(BenchmarkFailed, match="1 failures"):
        parse_figures(said)


# Watching.


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


def sse(event: str, said: object) -> bytes:
    return chunk(f"id: 7\nevent: {event}\ndata: {json.dumps(said)}\n\n".encode())


def instance(number: int, change: int) -> dict[str, Any]:
    return {"id": id_of(number), **spec_of(number, 30, change)}


def snapshot(*changes: int) -> bytes:
    told = [instance(number, change) for number, change in zip(WATCHED, changes, strict=False)]
    return sse("snapshot", {"revision": 1, "services": {service_of(WATCHED[0]): told}})


def delta(*changes: int) -> bytes:
    told = [
        {"service": "s", "id": id_of(at := (change - 1) % len(WATCHED)), "instance": instance(at, change)}
        for change in changes
    ]
    return sse("delta", {"revision": 2, "changes": told})


def watcher(changes: int, *received: bytes) -> tuple[Tally, FanOutStream]:
    """One that has received all this, when so many changes have been made."""
    tally = Tally(SIDES["quorate"], sent_s=[0.0] * (changes + 1))
    stream = FanOutStream(tally, b"")
    for data in (HEAD, snapshot(*[0] * len(WATCHED)), *received):
        stream.data_received(data)
    return tally, stream


async def test_changes_are_counted_however_their_bytes_come_in() -> None:
    whole = chunk(b": keep-alive\n\n") + delta(1) + sse("bookmark", {"revision": 2}) + delta(2, 3)
    for step in (1, 7, 100, len(whole)):
        tally, stream = watcher(3, *(whole[at : at + step] for at in range(0, len(whole), step)))
        assert (tally.broken, tally.latencies.count, tally.together) == ([], 3, 0)
        assert stream.seen[:4] == [1, 2, 3, 0]
        assert stream.in_force.done()


async def test_changes_of_one_instance_that_come_together_are_each_counted_and_told() -> None:
    again = 1 + 2 * len(WATCHED)
    tally, stream = watcher(again, delta(1), delta(again))
    assert stream.seen[0] == again
    assert (tally.latencies.count, tally.together) == (3, 1)


async def test_a_snapshot_in_the_middle_says_where_everybody_is() -> None:
    tally, stream = watcher(2, snapshot(1, 2))
    assert (stream.seen[:2], tally.latencies.count, tally.broken) == ([1, 2], 2, [])


async def test_what_one_stream_has_parsed_another_knows_by_its_bytes() -> None:
    tally, first = watcher(1, delta(1))
    second = FanOutStream(tally, b"")
    for data in (HEAD, snapshot(*[0] * len(WATCHED))):
        second.data_received(data)
    parsed = tally.parsed
    second.data_received(delta(1))
    assert (tally.parsed, first.seen, second.seen) == (parsed, second.seen, first.seen)


@pytest.mark.parametrize(
    ("received", "said"),
    [
        ([delta(11), delta(1)], "went back from change 11 to 1"),
        ([delta(12)], "which nobody has made"),
        ([sse("delta", {"changes": [{"id": id_of(0), "instance": None}]})], "which nobody has done"),
        ([sse("delta", {"changes": [{"id": "stranger", "instance": instance(0, 1)}]})], "which nobody has done"),
        ([sse("delta", {"changes": [{"id": id_of(3), "instance": instance(3, 1)}]})], "which nobody has made"),
        ([sse("resync", {"reason": "too slow"})], "given up: too slow"),
        ([chunk(b"data: {\n\n")], "Expecting"),
        ([b"no chunk\r\n"], "no size of a chunk"),
    ],
)
async def test_what_a_stream_must_not_say_breaks_it(received: Sequence[bytes], said: str) -> None:
    tally, _ = watcher(11, *received)
    assert len(tally.broken) == 1
    assert said in tally.broken[0]


async def test_a_stream_that_is_refused_never_comes_into_force() -> None:
    tally = Tally(SIDES["quorate"])
    stream = FanOutStream(tally, b"")
    stream.data_received(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}")
    with pytest.raises(FanOutFailed, match="429 answers a watch"):
        await stream.in_force


def test_the_last_changes_are_those_of_each_instance() -> None:
    assert last_changes(12) == [11, 12, *range(3, 11)]
    assert last_changes(3) == [1, 2, 3, *[0] * 7]


@asynccontextmanager
async def telling(tell: Callable[[int, int], bytes]) -> AsyncIterator[str]:
    """A registry that tells each of its watchers, counted from 0, of each change by what `tell` makes of it."""
    streams: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, path, body = await next_request(reader)
            if "/watch" in path:
                streams.append(writer)
                writer.write(HEAD + snapshot(*[0] * len(WATCHED)))
                continue
            change = int(json.loads(body)["metadata"]["change"])
            for at, stream in enumerate(streams):
                stream.write(tell(at, change))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with served(serve) as url:
        yield url


async def test_every_watcher_gets_every_change() -> None:
    async with telling(lambda _, change: delta(change)) as url:
        figures = parse_figures(await measure(SIDES["quorate"], [url], url, 5, 200.0, 0.1))
    assert (figures.requests, figures.failed, figures.extra["changes"]) == (5 * 20, 0, 20)


async def test_a_watcher_that_misses_the_last_change_fails_the_run() -> None:
    async with telling(lambda at, change: b"" if (at, change) == (3, 20) else delta(change)) as url:
        said = await measure(SIDES["quorate"], [url], url, 5, 200.0, 0.1, drain_s=0.05)
    assert parse_figures(said).failed == 1


async def test_the_client_says_when_all_streams_are_in_force_and_begins_when_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go, said = tmp_path / "go", ""
    async with telling(lambda _, change: delta(change)) as url, asyncio.timeout(10), asyncio.TaskGroup() as group:
        measuring = group.create_task(measure_when_told(SIDES["quorate"], [url], url, 3, 1_000.0, go))
        while IN_FORCE not in said:
            await asyncio.sleep(0)
            said += capsys.readouterr().out
        assert "figures" not in said
        go.write_text("0.01")
        while "figures" not in said:
            await asyncio.sleep(0)
            said += capsys.readouterr().out
        assert not measuring.done(), "its streams are open until it is told to end"
        go.unlink()
    assert parse_figures(said).requests == 3 * 10
