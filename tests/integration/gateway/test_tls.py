"""TLS towards clients: what is spoken, what is refused and how, and certificates that change under connections."""

import asyncio
import hashlib
import json
import socket
import ssl
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from quorate_core.errors import SettingsError
from quorate_gateway.proxy.limits import ConnectionLimits
from quorate_gateway.proxy.tls import Certificate
from support.gateway_client import TLS_NAME, Client, Gateway, running_gateway
from support.gateway_upstream import WAIT_S_MAX, Exchange, Upstream
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""Its first bytes, and no more."""


@dataclass
class Authority:
    """Issues certificates into two files, as something beside the gateway renews them."""

    authority: trustme.CA
    certificate_file: Path
    key_file: Path

    def issue(self, key_of: trustme.LeafCert | None = None) -> trustme.LeafCert:
        """Write a new certificate with its key; or with another's key."""
        issued = self.authority.issue_cert(TLS_NAME)
        self.certificate_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key_file.write_bytes((key_of or issued).private_key_pem.bytes())
        return issued

    def load(self) -> Certificate:
        return Certificate(self.certificate_file, self.key_file)

    def client(self, alpn: list[str] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if alpn is not None:
            context.set_alpn_protocols(alpn)
        return context


@pytest.fixture
def issuer(tmp_path: Path) -> Authority:
    made = Authority(trustme.CA(), tmp_path / "gateway.pem", tmp_path / "gateway.key")
    made.issue()
    return made


def tls_of(client: Client) -> ssl.SSLObject:
    found = client.writer.get_extra_info("ssl_object")
    assert isinstance(found, ssl.SSLObject)
    return found


def serial_seen_by(client: Client) -> int:
    certificate = tls_of(client).getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def serial_of(issued: trustme.LeafCert) -> int:
    return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).serial_number


async def raw(gateway: Gateway, data: bytes) -> bytes:
    """What the port answers to these bytes, without TLS, until it closes."""
    client = await gateway.client()
    await client.send(data)
    return await client.rest()


async def echo(exchange: Exchange) -> None:
    body = await exchange.read_body()
    await exchange.reply(body)


async def test_a_request_by_tls_goes_through_and_the_service_is_told(issuer: Authority) -> None:
    async with Upstream() as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        client = await gateway.client(tls=issuer.client(["h2", "http/1.1"]))
        for _ in range(3):
            assert (await client.get()).body == b"hello"
        assert tls_of(client).selected_alpn_protocol() == "http/1.1"
        assert tls_of(client).version() == "TLSv1.3"
        assert upstream.requests[0].field("x-forwarded-proto") == "https"
        assert upstream.requests[0].field("forwarded") == 'for=127.0.0.1;host="shop";proto=https'


async def test_tls_1_2_is_spoken_and_what_is_older_is_not(issuer: Authority) -> None:
    async with Upstream() as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        context = issuer.client()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await (await gateway.client(tls=context)).get()).status == 200
        context = issuer.client()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await gateway.client(tls=context)


async def test_a_new_certificate_is_for_new_connections_and_ends_none(issuer: Authority) -> None:
    first, certificate = issuer.issue(), issuer.load()
    async with Upstream() as upstream, running_gateway(upstream, certificate=certificate) as gateway:
        old = await gateway.client(tls=issuer.client())
        await old.get()
        assert not certificate.has_changed
        second = issuer.issue()
        assert certificate.has_changed
        certificate.reload()
        assert not certificate.has_changed
        new = await gateway.client(tls=issuer.client())
        assert (serial_seen_by(old), serial_seen_by(new)) == (serial_of(first), serial_of(second))
        assert [(await client.get()).status for client in (old, new, old)] == [200, 200, 200]


@pytest.mark.parametrize("damage", ["no certificate", "no key", "garbage", "another's key"])
async def test_files_that_cannot_be_used_change_nothing_and_say_why(issuer: Authority, damage: str) -> None:
    issued = issuer.issue()
    certificate = issuer.load()
    if damage == "no certificate":
        issuer.certificate_file.unlink()
    elif damage == "no key":
        issuer.key_file.unlink()
    elif damage == "garbage":
        issuer.certificate_file.write_text("-----BEGIN CERTIFICATE-----\nnone\n")
    else:
        issuer.issue(key_of=issued)
    with pytest.raises(SettingsError, match=r"gateway\.pem"):
        certificate.reload()
    assert certificate.has_changed
    async with Upstream() as upstream, running_gateway(upstream, certificate=certificate) as gateway:
        client = await gateway.client(tls=issuer.client())
        assert serial_seen_by(client) == serial_of(issued)
        assert (await client.get()).status == 200


def test_a_key_with_a_password_is_refused_and_not_asked_for(issuer: Authority) -> None:
    key = serialization.load_pem_private_key(issuer.key_file.read_bytes(), None)
    issuer.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    with pytest.raises(SettingsError, match="password"):
        issuer.load()


async def test_plain_http_on_a_tls_port_is_told_so(issuer: Authority) -> None:
    async with Upstream() as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        for request in (b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n", b"POST / HTTP/1.1\r\n", b"\r\n", b"\x15"):
            client = await gateway.client()
            await client.send(request)
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)["rule"]) == (400, "tls-required")
            assert answer.field("connection") == "close"
            assert await client.rest() == b""
            client.close()
        assert upstream.requests == []
        await gateway.until(lambda: not gateway.plane.clients)


async def test_a_handshake_that_fails_or_never_ends_leaves_nothing_behind(issuer: Authority) -> None:
    limits = ConnectionLimits(head_timeout_s=0.2)
    async with Upstream() as upstream, running_gateway(upstream, certificate=issuer.load(), limits=limits) as gateway:
        silent, half = await gateway.client(), await gateway.client()
        await half.send(CLIENT_HELLO)
        assert b"HTTP" not in await raw(gateway, b"\x16" + bytes(600))
        gone = socket.create_connection(("127.0.0.1", gateway.port))
        gone.close()
        assert await silent.rest() == b""
        assert b"HTTP" not in await half.rest()
        with pytest.raises(ssl.SSLCertVerificationError):
            await gateway.client(tls=ssl.create_default_context())
        assert (await (await gateway.client(tls=issuer.client())).get()).status == 200
        await gateway.until(lambda: len(gateway.plane.clients) == 1)
        await gateway.until(lambda: len(gateway.plane._tasks) == 2)  # the sweep and the acceptor


async def test_large_bodies_go_both_ways_by_tls(issuer: Authority) -> None:
    body = bytes(range(256)) * 16_384
    async with Upstream(echo) as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        client = await gateway.client(tls=issuer.client())
        for _ in range(2):
            answer = await client.post(body)
            assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()


async def test_an_answer_to_a_request_that_is_not_read_arrives_whole_by_tls(issuer: Authority) -> None:
    async with Upstream() as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        client = await gateway.client(tls=issuer.client())
        await client.send(b"POST /nowhere HTTP/1.1\r\nHost: shop\r\nContent-Length: 500000\r\n\r\n" + bytes(300_000))
        answer = await client.answer()
        assert (answer.status, answer.field("connection")) == (404, "close")
        client.close()
        await gateway.until(lambda: not gateway.plane.clients)


async def test_a_client_that_leaves_takes_its_upstream_connection_with_it_by_tls_too(issuer: Authority) -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.until_closed()

    async with Upstream(never) as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        for leave in (Client.close, Client.reset):
            client = await gateway.client(tls=issuer.client())
            await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
            await upstream.until(lambda: upstream.open_connections == 1)
            leave(client)
            await upstream.until(lambda: upstream.open_connections == 0)


async def test_an_answer_that_is_cut_short_does_not_look_whole_by_tls(issuer: Authority) -> None:
    async def until_reset(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        await go_on.wait()
        exchange.reset()

    go_on = asyncio.Event()
    async with Upstream(until_reset) as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        client = await gateway.client(tls=issuer.client())
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await client.until(b"half of it")
        go_on.set()
        with pytest.raises((ConnectionResetError, ssl.SSLError)):
            await client.rest()


async def test_websocket_by_tls(issuer: Authority) -> None:
    async def echo_messages(websocket: ServerConnection) -> None:
        async for message in websocket:
            await websocket.send(message)

    routes = "  - {match: {path_prefix: /orders}, service: order, websocket: true}\n"
    async with serve(echo_messages, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with (
            running_gateway(port, routes=routes, certificate=issuer.load()) as gateway,
            connect(
                f"wss://{TLS_NAME}:{gateway.port}/orders", host="127.0.0.1", ssl=issuer.client(), max_size=None,
                proxy=None, open_timeout=WAIT_S_MAX,
            ) as websocket,
        ):  # fmt: skip
            for message in ("hello", bytes(2_000_000)):
                await websocket.send(message)
                assert await websocket.recv() == message


async def test_draining_closes_the_port_and_finishes_what_has_begun(issuer: Authority) -> None:
    release = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply()

    async with Upstream(wait) as upstream, running_gateway(upstream, certificate=issuer.load()) as gateway:
        busy, idle = await gateway.client(tls=issuer.client()), await gateway.client(tls=issuer.client())
        await busy.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await upstream.until(lambda: len(upstream.requests) == 1)
        draining = asyncio.ensure_future(gateway.plane.drain(WAIT_S_MAX))  # noqa: TID251 - awaited below
        assert await idle.rest() == b""
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the kernel likes
            await gateway.client(tls=issuer.client())
        release.set()
        assert (await busy.answer()).field("connection") == "close"
        await draining


async def test_connections_by_tls_are_limited_as_others_are(issuer: Authority) -> None:
    limits = ConnectionLimits(connections_per_client_max=2)
    async with Upstream() as upstream, running_gateway(upstream, certificate=issuer.load(), limits=limits) as gateway:
        clients = [await gateway.client(tls=issuer.client()) for _ in range(2)]
        assert [(await client.get()).status for client in clients] == [200, 200]
        third = await gateway.client(tls=issuer.client())
        answer = await third.answer()
        assert (answer.status, json.loads(answer.body)["rule"]) == (429, "too-many-connections-of-client")
        clients[0].close()
        third.close()
        await gateway.until(lambda: gateway.plane.connections.total == 1)
        assert (await (await gateway.client(tls=issuer.client())).get()).status == 200
