"""What the flags of the process switch on, shown by the process itself."""

import asyncio
import os
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trustme
from quorate_core.process import EXIT_SETTINGS
from quorate_core.tasks import TaskOwner
from quorate_gateway.compiled import VARIABLE
from support.gateway_client import TLS_NAME, Answer, Client
from support.gateway_stack import GatewayStack, gateway_stack
from support.gateway_upstream import WAIT_S_MAX, Exchange, Upstream
from support.node_processes import until
from support.redis_server import RedisServer

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "gateway.md"
ROUTE = "routes:\n  - {name: orders, match: {path_prefix: /orders}, service: order%s}\n"
CLIENTS = 8
SIGNALS = 20
WORKERS = 2
LIMIT = 3


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as started:
        yield started


@contextmanager
def serving(folder: Path, upstream: Upstream, *flags: str, route: str = "") -> Iterator[GatewayStack]:
    """A gateway with these flags, and one route to the upstream, of which `route` says more."""
    with gateway_stack(folder, *flags) as stack:
        stack.register("order", {"order-1": upstream.port})
        stack.publish(ROUTE % route)
        stack.wait_endpoints("order", ["order-1"])
        yield stack


@asynccontextmanager
async def started(folder: Path, upstream: Upstream, *flags: str, route: str = "") -> AsyncIterator[GatewayStack]:
    """As `serving`, with the upstream answering meanwhile."""
    with ExitStack() as ends:
        context = serving(folder, upstream, *flags, route=route)
        stack = await asyncio.to_thread(ends.enter_context, context)
        yield stack


@asynccontextmanager
async def client_of(stack: GatewayStack, context: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    name = None if context is None else TLS_NAME
    opened = await asyncio.open_connection("127.0.0.1", stack.port, ssl=context, server_hostname=name)
    client = Client(*opened)
    try:
        yield client
    finally:
        client.reset()


async def metric(stack: GatewayStack, name: str) -> float:
    return await asyncio.to_thread(stack.metric, f"quorate_gateway_{name}")


def rule(answer: Answer) -> str:
    found = re.search(rb'"rule": ?"([a-z-]+)"', answer.body)
    assert found is not None, answer.body
    return found[1].decode()


# TLS and what is read again.


class Issuer:
    """Certificates in two files, as something beside the gateway renews them."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.flags = ("--tls-certificate-file", str(self.certificate), "--tls-key-file", str(self.key))
        self.issue()

    def issue(self) -> bytes:
        """Another one; its DER."""
        issued = self.authority.issue_cert(TLS_NAME)
        self.certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        self.key.write_bytes(issued.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


def certificate_of(client: Client) -> bytes:
    found = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert isinstance(found, bytes)
    return found


async def refused_start(folder: Path, *flags: str) -> str:
    """What the process says that ends at once for its settings."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "quorate_gateway", "--name", "gateway", "--data-dir", str(folder / "data"), "--listen",
        "127.0.0.1:0", "--admin", "127.0.0.1:0", "--endpoints", "http://127.0.0.1:9", *flags,
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    async with asyncio.timeout(3 * WAIT_S_MAX):
        _, said = await process.communicate()
    assert process.returncode == EXIT_SETTINGS, said
    assert b"Traceback" not in said
    return said.decode()


async def reload(stack: GatewayStack, told: str) -> None:
    """SIGHUP, and wait until the log has `told` once more."""
    assert stack.process is not None
    before = stack.log.count(told)
    stack.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(until, told, lambda: stack.log.count(told) > before)


async def test_clients_are_served_by_tls_and_a_signal_changes_the_certificate_for_new_ones(
    tmp_path: Path, upstream: Upstream
) -> None:
    issuer = Issuer(tmp_path)
    async with started(tmp_path, upstream, *issuer.flags) as stack, client_of(stack, issuer.client()) as old:
        former = certificate_of(old)
        assert (await old.get()).status == 200
        assert upstream.requests[-1].field("x-forwarded-proto") == "https"
        ends_s = await metric(stack, "tls_certificate_not_after_seconds")
        assert ends_s == ssl.cert_time_to_seconds(old.writer.get_extra_info("peercert")["notAfter"])

        newer = issuer.issue()
        await reload(stack, "certificate_reloaded")
        async with client_of(stack, issuer.client()) as new:
            assert certificate_of(new) == newer != former
            assert (await new.get()).status == 200
        assert (await old.get()).status == 200  # on the connection and by the certificate of before

        issuer.key.write_text("no key")
        await reload(stack, "certificate_not_reloaded")
        async with client_of(stack, issuer.client()) as later:
            assert certificate_of(later) == newer


async def test_each_of_several_workers_changes_its_certificate_on_a_signal(tmp_path: Path, upstream: Upstream) -> None:
    issuer = Issuer(tmp_path)
    async with started(tmp_path, upstream, "--workers", str(WORKERS), *issuer.flags) as stack:
        async with client_of(stack, issuer.client()) as old:
            newer = issuer.issue()
            assert certificate_of(old) != newer
            await reload(stack, "certificate_reloaded")
            await asyncio.to_thread(until, "all use it", lambda: stack.log.count("certificate_in_use") == WORKERS)
            issuer.key.write_text("no key")
            await reload(stack, "certificate_not_reloaded")
            for _ in range(2 * WORKERS):
                async with client_of(stack, issuer.client()) as later:
                    assert certificate_of(later) == newer
            assert (await old.get()).status == 200  # nobody was cut off
        assert await asyncio.to_thread(stack.stop) == 0


async def test_signals_and_swaps_under_load_lose_no_request(tmp_path: Path, upstream: Upstream) -> None:
    issuer = Issuer(tmp_path)
    async with started(tmp_path, upstream, *issuer.flags) as stack, TaskOwner("clients") as tasks:
        ended = asyncio.Event()
        counted = [0] * CLIENTS
        first = asyncio.Event()

        async def ask(number: int) -> None:
            async with client_of(stack, issuer.client()) as client:
                while not ended.is_set():
                    assert (await client.get()).status == 200
                    counted[number] += 1
                    if all(counted):
                        first.set()

        asking = [tasks.start(ask(number), "client") for number in range(CLIENTS)]
        async with asyncio.timeout(WAIT_S_MAX):
            await first.wait()
        before = sum(counted)
        for number in range(SIGNALS):
            issuer.issue()
            await reload(stack, "certificate_reloaded")
            if number % 5 == 0:
                await asyncio.to_thread(stack.publish, ROUTE % f", timeout_ms: {10_000 + number}")
        ended.set()
        await asyncio.gather(*asking)
        assert sum(counted) > before
        assert await metric(stack, "requests_total") == sum(counted)
        assert await metric(stack, "connections_accepted_total") == CLIENTS


# Who a client is, and how much it may hold.


async def test_a_trusted_proxy_says_who_the_client_is(tmp_path: Path, upstream: Upstream) -> None:
    route = ", rate_limit: {requests_per_second: 0.001, burst: 1, key: client}"
    flags = ("--trusted-proxies", "10.0.0.0/8,127.0.0.1")
    async with started(tmp_path, upstream, *flags, route=route) as stack, client_of(stack) as proxy:
        said = [await proxy.get(fields=f"X-Forwarded-For: {who}\r\n") for who in ("192.0.2.1", "192.0.2.2")]
        again = await proxy.get(fields="X-Forwarded-For: 192.0.2.1\r\n")
    assert [answer.status for answer in (*said, again)] == [200, 200, 429]


async def test_nobody_is_trusted_by_default(tmp_path: Path, upstream: Upstream) -> None:
    route = ", rate_limit: {requests_per_second: 0.001, burst: 1, key: client}"
    async with started(tmp_path, upstream, "--connections-per-client-max", "2", route=route) as stack:
        async with client_of(stack) as first, client_of(stack) as second:
            said = [
                await one.get(fields=f"X-Forwarded-For: 192.0.2.{at}\r\n") for at, one in enumerate((first, second))
            ]
            assert [answer.status for answer in said] == [200, 429]
            async with client_of(stack) as third:
                refused = await third.answer()  # before it has asked
            assert (refused.status, rule(refused)) == (429, "too-many-connections-of-client")
        assert await metric(stack, "connections_refused_total") == 1


async def test_heads_and_requests_in_progress_are_bounded_as_the_flags_say(tmp_path: Path) -> None:
    held: asyncio.Queue[Exchange] = asyncio.Queue()
    going_on = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        held.put_nowait(exchange)
        await going_on.wait()
        await exchange.reply()

    flags = ("--head-bytes-max", "1024", "--head-fields-max", "8", "--requests-active-max", "2")
    async with Upstream(hold) as upstream, started(tmp_path, upstream, *flags) as stack:
        async with client_of(stack) as client:
            large = await client.get(fields=f"X-Large: {'x' * 1_100}\r\n")
        async with client_of(stack) as client:
            many = await client.get(fields="".join(f"X-{at}: 1\r\n" for at in range(8)))
        assert [large.status, many.status] == [431, 431]
        async with client_of(stack) as first, client_of(stack) as second, client_of(stack) as third:
            for client in (first, second):
                await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
                async with asyncio.timeout(WAIT_S_MAX):
                    await held.get()
            refused = await third.get()
            assert (refused.status, rule(refused)) == (503, "overloaded")
            assert await metric(stack, "saturation_ratio") == 1.0
            assert await metric(stack, "requests_shed_total") == 1
            going_on.set()
            assert [(await client.answer()).status for client in (first, second)] == [200, 200]
            assert (await third.get()).status == 200


async def test_instances_of_the_gateways_own_zone_come_first(tmp_path: Path) -> None:
    async with Upstream() as near, Upstream() as far, started(tmp_path, far, "--zone", "east") as stack:

        def move() -> None:
            for name, one, zone in (("order-1", far, "west"), ("order-2", near, "east")):
                spec = {"host": "127.0.0.1", "port": one.port, "ttl_s": 3_600, "zone": zone}
                url = f"{stack.node.url}/v1/registry/default/services/order/instances/{name}"
                stack.http.put(url, json=spec).raise_for_status()
            stack.wait_endpoints("order", ["order-1", "order-2"])
            zones = {"east": 1, "west": 1}
            until("the zones are known", lambda: stack.admin("clusters")[0]["zones"] == zones)

        await asyncio.to_thread(move)
        async with client_of(stack) as client:
            for _ in range(20):
                assert (await client.get()).status == 200
        assert (len(near.requests), len(far.requests)) == (20, 0)


# Redis.


async def test_a_shared_limit_is_counted_in_redis_and_outlives_the_gateway(tmp_path: Path, upstream: Upstream) -> None:
    route = f", rate_limit: {{requests_per_second: 0.001, burst: {LIMIT}, key: route, shared: true}}"
    with RedisServer() as redis:
        async with started(tmp_path, upstream, "--redis-url", redis.url, route=route) as stack:
            await asyncio.to_thread(until, "Redis is there", lambda: stack.metric("quorate_gateway_redis_up") == 1)
            asked = 0
            async with client_of(stack) as client:
                while (await client.get()).status == 200:
                    asked += 1
            local = await metric(stack, "rate_limit_local_total")
            assert asked <= LIMIT + local  # a machine without a core for 10 ms lets the own share decide
            assert await metric(stack, "redis_answers_total") >= 1
            assert redis.client().dbsize() >= 1

            await asyncio.to_thread(stack.stop)
            await asyncio.to_thread(stack.start, "--redis-url", redis.url)
            await asyncio.to_thread(until, "Redis is there", lambda: stack.metric("quorate_gateway_redis_up") == 1)
            async with client_of(stack) as client:
                after = await client.get()
            assert after.status == 429 or await metric(stack, "rate_limit_local_total") == 1


# What is told.


def test_the_page_has_every_metric_and_no_other(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    with RedisServer() as redis, gateway_stack(tmp_path, *issuer.flags, "--redis-url", redis.url) as stack:
        text = stack.http.get(f"http://127.0.0.1:{stack.admin_port}/metrics").text
        (worker,) = stack.admin("workers")["workers"]
        assert stack.process is not None
        assert (worker["pid"], worker["state"]) == (stack.process.pid, "serving")
        assert worker["memory_bytes"] > 10_000_000
    found = re.findall(r"^# TYPE quorate_gateway_(\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    there = {name.removesuffix("_total") for name in found if not name.endswith("_created")}
    section = PAGE.read_text().partition("## Metrics")[2]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert there == {name for row in rows for name in re.findall(r"`(\w+)`", row)}


# Compiled modules, which these tests use or not, all together; see `scripts/run_tests.py`.


@pytest.mark.parametrize("flags", [(), ("--workers", str(WORKERS))], ids=["one process", "workers"])
async def test_the_processes_say_whether_they_run_compiled(
    tmp_path: Path, upstream: Upstream, flags: tuple[str, ...]
) -> None:
    is_compiled = os.environ[VARIABLE] == "required"
    async with started(tmp_path, upstream, *flags) as stack:
        assert await metric(stack, "compiled") == is_compiled
        told = re.findall(r"(listening|worker_serves) .*compiled=('[^']*'|True)", stack.log)
        assert len(told) == 1 + (WORKERS if flags else 0)
        assert {said for _, said in told} == {"True" if is_compiled else f"'{VARIABLE} is off'"}


async def test_a_wish_about_them_that_nobody_understands_ends_the_start_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "perhaps")
    assert f"{VARIABLE} is auto, off or required, not 'perhaps'" in await refused_start(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--redis-url", "http://cache:6379"], "--redis-url"),
        (
            ["--tls-certificate-file", "/nonexistent/tls.crt", "--tls-key-file", "/nonexistent/tls.key"],
            "/nonexistent/tls.crt",
        ),
    ],
)
async def test_what_only_the_start_can_tell_is_named_too(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in await refused_start(tmp_path, *arguments)


async def test_a_key_that_belongs_to_another_certificate_is_refused_by_the_flags(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path)
    other = issuer.key.read_bytes()
    issuer.issue()
    issuer.key.write_bytes(other)
    assert "--tls-certificate-file, --tls-key-file" in await refused_start(tmp_path, *issuer.flags)
