"""What the process is told by flags reaches the data plane: seen from outside, on a real gateway."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from integration.gateway.test_process import run, start
from support.gateway_client import TLS_NAME, Client
from support.gateway_stack import GatewayStack, gateway_stack
from support.gateway_upstream import WAIT_S_MAX, Upstream, unused_port
from support.node_processes import until
from support.redis_server import RedisServer

ORDERS = "  - {name: orders, match: {path_prefix: /orders}, service: order}\n"


@asynccontextmanager
async def client_of(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    name = None if tls is None else TLS_NAME
    client = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name))
    try:
        yield client
    finally:
        client.close()


def serial_seen_by(client: Client) -> int:
    found = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(found).serial_number


class Certificates:
    """An authority, and the files that a gateway reads its certificate from."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.certificate_file, self.key_file = folder / "gateway.pem", folder / "gateway.key"
        self.client = ssl.create_default_context()
        self.authority.configure_trust(self.client)

    def issue(self) -> int:
        """Write a new one; returns its serial number."""
        issued = self.authority.issue_cert(TLS_NAME)
        self.certificate_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key_file.write_bytes(issued.private_key_pem.bytes())
        return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).serial_number

    @property
    def flags(self) -> tuple[str, ...]:
        return "--tls-certificate-file", str(self.certificate_file), "--tls-key-file", str(self.key_file)


@pytest.mark.parametrize("workers", [1, 2])
async def test_tls_with_a_certificate_that_is_replaced_on_sighup(tmp_path: Path, workers: int) -> None:
    certificates = Certificates(tmp_path)
    first = certificates.issue()
    process = await start(
        tmp_path, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--endpoints",
        f"http://127.0.0.1:{unused_port()}", "--workers", str(workers), *certificates.flags,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        line = await said(process.stderr, "url=https://")
        port = int(line.rpartition("url=https://127.0.0.1:")[2].split()[0])
        async with client_of(port, certificates.client) as former:
            assert serial_seen_by(former) == first
            second = certificates.issue()
            process.send_signal(signal.SIGHUP)
            await said(process.stderr, "certificate_reloaded")
            for _ in range(workers if workers > 1 else 0):
                await said(process.stderr, "certificate_in_use")
            for _ in range(2 * workers):
                async with client_of(port, certificates.client) as later:
                    assert serial_seen_by(later) == second
            certificates.key_file.write_text("no key")
            process.send_signal(signal.SIGHUP)
            await said(process.stderr, "certificate_not_reloaded")
            async with client_of(port, certificates.client) as later:
                assert serial_seen_by(later) == second
            assert (await former.get()).status == 503  # no routes yet, and nobody was cut off
        process.terminate()
        async with asyncio.timeout(2 * WAIT_S_MAX):
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def said(stderr: asyncio.StreamReader, words: str) -> str:
    """The next line that has them."""
    lines: list[str] = []
    async with asyncio.timeout(3 * WAIT_S_MAX):
        async for line in stderr:
            lines.append(line.decode())
            if words in lines[-1]:
                return lines[-1]
    raise AssertionError(f"{words!r} was not said, but: {''.join(lines)}")


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


async def test_limits_of_heads_and_connections_proxies_that_are_trusted_and_redis(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    flags = (
        "--trusted-proxies", "127.0.0.0/8", "--connections-per-client-max", "3", "--head-bytes-max", "2048",
        "--redis-url", redis_server.url, "--zone", "a",
    )  # fmt: skip
    limited = ORDERS.replace(
        "service: order",
        "service: order, rate_limit: {requests_per_second: 0.001, burst: 1, key: client, shared: true}",
    )
    with gateway_stack(tmp_path, *flags) as stack:
        async with Upstream(keeps_requests=False) as upstream:
            await asyncio.to_thread(stack.register, "order", {"order-1": upstream.port})
            await asyncio.to_thread(stack.publish, f"routes:\n{limited}")
            await asyncio.to_thread(stack.wait_endpoints, "order", ["order-1"])
            await asyncio.to_thread(until, "Redis is counted in", lambda: stack.metric("quorate_gateway_redis_up") == 1)
            async with client_of(stack.port) as client:
                answers = [
                    (await client.get(fields=f"X-Forwarded-For: {address}\r\n")).status
                    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")
                ]
                assert answers == [200, 200, 429]  # the proxy's word counts: two clients, of whom one came twice
                assert (await client.get(fields=f"X-Long: {'a' * 3_000}\r\n")).status == 431
            assert await asyncio.to_thread(stack.metric, "quorate_gateway_redis_answers_total") >= 3


async def test_a_client_has_as_many_connections_as_it_may(tmp_path: Path) -> None:
    with gateway_stack(tmp_path, "--connections-per-client-max", "2") as stack:
        async with client_of(stack.port) as one, client_of(stack.port) as two:
            assert {(await one.get()).status, (await two.get()).status} <= {404, 503}  # there are no routes
            async with client_of(stack.port) as third:
                assert (await third.answer()).status == 429
        assert await asyncio.to_thread(_refused, stack) == 1


def _refused(stack: GatewayStack) -> float:
    return stack.metric("quorate_gateway_connections_refused_total")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls-certificate-file", "/nonexistent.pem"), "--tls-key-file"),
        (("--tls-certificate-file", "/nonexistent.pem", "--tls-key-file", "/nonexistent.key"), "/nonexistent.pem"),
        (("--trusted-proxies", "10.0.0.0/99"), "10.0.0.0/99"),
        (("--redis-url", "mysql://here"), "redis"),
        (("--workers", "0"), "--workers"),
        (("--workers", "99"), "--workers"),
        (("--requests-active-max", "1", "--workers", "2"), "--requests-active-max"),
        (("--head-bytes-max", "10"), "--head-bytes-max"),
    ],
)
async def test_a_bad_value_is_named(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    status, output = await run(
        tmp_path, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--endpoints", "http://127.0.0.1:9", *arguments
    )
    assert status == 78
    assert words in output
    assert "Traceback" not in output
