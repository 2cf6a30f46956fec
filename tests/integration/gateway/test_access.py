"""Access through the data plane: who reaches a service, what the service is told of them, and what pages may read."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from quorate_core.clock import ManualClock
from quorate_core.tasks import TaskOwner
from quorate_gateway.documents.access import ApiKey, ApiKeysDocument
from quorate_gateway.matching import CompileContext
from quorate_gateway.policies.jwt_tokens import JwtVerifiers
from quorate_gateway.policies.key_source import RefreshTimes
from quorate_gateway.routes import parse_routes
from quorate_gateway.snapshot import Revisions, build_snapshot
from support.gateway_client import Answer, Gateway, running_gateway
from support.gateway_snapshots import instance
from support.gateway_tokens import KeyServer, claims, jwks, public_jwk, signed
from support.gateway_upstream import Exchange, Upstream, unused_port

SHOP = "https://shop.example"
BY_KEY = "auth: {api_key: {}}"
BY_TOKEN = "auth: {jwt: {provider: staff}}"
TIMES = RefreshTimes(interval_s=3_600.0, retry_s=0.002, retry_max_s=0.01)


def document(*policies: str, provider: str = "") -> str:
    """One route with these policies, and the provider `staff` with what is given of it."""
    lines = ["routes:", "  - name: orders", "    match: {path_prefix: /orders}", "    service: order"]
    lines += [f"    {policy}" for policy in policies]
    if provider:
        lines += ["jwt_providers:", f"  staff: {{issuer: 'https://id.example', audiences: [shop], {provider}}}"]
    return "\n".join(lines) + "\n"


def keys(*ids: str, **changes: Any) -> ApiKeysDocument:
    """The key of `web` is `web-key`, and so on."""
    entries = [ApiKey(id=one, sha256=hashlib.sha256(f"{one}-key".encode()).hexdigest(), **changes) for one in ids]
    return ApiKeysDocument(keys=entries)


@dataclass
class Access:
    gateway: Gateway
    upstream: Upstream
    context: CompileContext

    def serve(self, routes: str, port: int | None = None) -> None:
        found = {"order": [instance("order", "order-1", port or self.upstream.port)]}
        snapshot = build_snapshot(
            parse_routes(routes), lambda service: found.get(service, ()), Revisions(1, 1, 1),
            self.gateway.plane.snapshot, self.context,
        )  # fmt: skip
        self.gateway.plane.swap(snapshot)


@asynccontextmanager
async def serving(
    routes: str, api_keys: ApiKeysDocument | None = None, upstream: Upstream | None = None
) -> AsyncIterator[Access]:
    clock = ManualClock(1_800_000_000.0)
    context = CompileContext(tokens=JwtVerifiers(clock, TIMES), clock=clock)
    if api_keys is not None:
        context.api_keys.replace(api_keys)
    async with upstream or Upstream() as service, running_gateway(clock=clock) as gateway, TaskOwner("keys") as tasks:
        context.tokens.start(tasks)
        access = Access(gateway, service, context)
        access.serve(routes)
        yield access


def rule(answer: Answer) -> str:
    found: str = json.loads(answer.body)["rule"]
    return found


def bearer(token: bytes) -> str:
    return f"Authorization: Bearer {token.decode()}\r\n"


KEY = "X-API-Key: web-key\r\n"


async def test_a_key_opens_the_route_and_the_service_is_told_whose_it_is() -> None:
    async with serving(document(BY_KEY), keys("web")) as access:
        client = await access.gateway.client()
        refused = await client.get()
        assert (refused.status, rule(refused)) == (401, "unauthenticated")
        assert refused.field("www-authenticate") == 'ApiKey realm="quorate", header="x-api-key"'
        assert (await client.get(fields="X-API-Key: guess\r\n")).status == 401
        assert (await client.get(fields=KEY)).body == b"hello"
        (request,) = access.upstream.requests
        assert request.field("x-quorate-api-key-id") == "web"
        assert request.field("x-quorate-subject") is None


SPOOFED = (
    "X-Quorate-Api-Key-Id: root\r\nx-quorate-subject: root\r\nX-QUORATE-SUBJECT: root\r\nX_Quorate_Subject: root\r\n"
    "x-quorate_subject: root\r\nx-quorate-anything: root\r\nConnection: x-quorate-api-key-id\r\n"
)


@pytest.mark.parametrize("policies", [(BY_KEY,), ()], ids=["guarded", "open"])
async def test_no_caller_can_say_who_he_is(policies: tuple[str, ...]) -> None:
    async with serving(document(*policies), keys("web")) as access:
        client = await access.gateway.client()
        assert (await client.get(fields=KEY + SPOOFED)).status == 200
        head = f"POST /orders HTTP/1.1\r\nHost: shop\r\n{KEY}Transfer-Encoding: chunked\r\n\r\n"
        await client.send(head.encode() + b"2\r\nab\r\n0\r\nx-quorate-subject: root\r\n\r\n")
        # Its service reads no trailers, and fails the test by any that came.
        assert (await client.answer()).status == 200
        assert len(access.upstream.requests) == 2
        for request in access.upstream.requests:
            assert "root" not in [value for _, value in request.fields]
            named = [(name, value) for name, value in request.fields if "quorate" in name]
            assert named == ([("x-quorate-api-key-id", "web")] if policies else [])


async def test_a_token_opens_the_route_from_the_moment_that_its_provider_s_keys_are_there_and_for_good() -> None:
    port_keys = KeyServer(jwks())
    server = Upstream(port_keys)
    await server.start()
    await server.stop()  # its port is known now, and nobody listens
    routes = document(BY_TOKEN, provider=f"jwks_url: 'http://127.0.0.1:{server.port}/keys'")
    async with serving(routes) as access:
        client = await access.gateway.client()
        early = await client.get(fields=bearer(signed()))
        assert (early.status, rule(early), early.field("retry-after")) == (503, "auth-unavailable", "1")
        assert access.upstream.requests == []
        await server.start()
        source: Any = access.context.tokens["staff"].source
        await access.gateway.until(lambda: source.keys is not None)
        assert (await client.get(fields=bearer(signed()))).status == 200
        await server.stop()
        assert (await client.get(fields=bearer(signed(claims(sub="zoë|1"))))).status == 200
        assert [request.field("x-quorate-subject") for request in access.upstream.requests] == ["ada", "zo%C3%AB|1"]
        forged = await client.get(fields=bearer(signed(name="attacker", header={"kid": "one"})))
        assert (forged.status, len(access.upstream.requests)) == (401, 2)
        assert 'error="invalid_token"' in (forged.field("www-authenticate") or "")


async def test_a_claim_that_is_missing_is_told_by_403() -> None:
    routes = document(
        "auth: {jwt: {provider: staff, claims: {scope: orders.read}}}", provider=f"jwks: '{jwks(public_jwk())}'"
    )
    async with serving(routes) as access:
        client = await access.gateway.client()
        refused = await client.get(fields=bearer(signed(claims(scope="orders.write"))))
        assert (refused.status, rule(refused)) == (403, "forbidden")
        assert (await client.get(fields=bearer(signed(claims(scope="orders.write orders.read"))))).status == 200
        assert len(access.upstream.requests) == 1


async def test_what_is_published_holds_for_the_next_request_on_the_same_connection() -> None:
    async with serving(document(BY_KEY), keys("web")) as access:
        client = await access.gateway.client()
        assert (await client.get(fields=KEY)).status == 200
        access.context.api_keys.replace(keys("web", enabled=False))
        assert (await client.get(fields=KEY)).status == 401
        access.context.api_keys.replace(keys("web"))
        assert (await client.get(fields=KEY)).status == 200


async def test_a_request_that_is_not_let_in_is_refused_before_its_body() -> None:
    async with serving(document(BY_KEY), keys("web")) as access:
        client = await access.gateway.client()
        await client.send(
            b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 900000\r\nExpect: 100-continue\r\n\r\n"
        )
        refused = await client.answer()
        assert (refused.status, refused.field("connection")) == (401, "close")
        assert access.upstream.connections == 0


async def test_a_websocket_s_handshake_is_let_in_like_any_request() -> None:
    key = base64.b64encode(bytes(16)).decode()
    handshake = (
        f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    )
    async with serving(document(BY_KEY, "websocket: true"), keys("web")) as access:
        client = await access.gateway.client()
        assert (await client.get(fields=handshake)).status == 401
        assert access.upstream.requests == []


# Together with limits: who is not let in is not counted, and who is, is counted as who he is.


async def test_each_api_key_has_a_limit_of_its_own_and_strangers_use_none_up() -> None:
    limit = "rate_limit: {requests_per_second: 0.001, burst: 2, key: api_key}"
    async with serving(document(BY_KEY, limit), keys("web", "app")) as access:
        client = await access.gateway.client()
        route = access.gateway.plane.snapshot.routes[0]
        for _ in range(5):
            assert (await client.get(fields="X-API-Key: guess\r\n")).status == 401
        assert route.limit is not None
        assert (route.limit.admitted, route.limit.limited) == (0, 0)
        statuses = [(await client.get(fields=KEY)).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await client.get(fields="X-API-Key: app-key\r\n")).status == 200
        assert (await client.get(fields="X-API-Key: guess\r\n")).status == 401, "also where nothing is left"


async def test_each_subject_has_a_limit_of_its_own_whatever_the_token() -> None:
    limit = "rate_limit: {requests_per_second: 0.001, burst: 2, key: 'jwt:sub'}"
    async with serving(document(BY_TOKEN, limit, provider=f"jwks: '{jwks()}'")) as access:
        client = await access.gateway.client()
        tokens = [signed(claims(jti=str(number))) for number in range(3)]
        assert len(set(tokens)) == 3
        assert [(await client.get(fields=bearer(token))).status for token in tokens] == [200, 200, 429]
        assert (await client.get(fields=bearer(signed(claims(sub="eve"))))).status == 200


# CORS.

CORS = f"cors: {{origins: ['{SHOP}'], methods: [GET, PUT], headers: [x-api-key], credentials: true}}"
PREFLIGHT = f"Origin: {SHOP}\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-api-key\r\n"
ORIGIN = f"Origin: {SHOP}\r\n"


def cors_fields(answer: Answer) -> Mapping[str, str]:
    found = [(name, value) for name, value in answer.fields if name.startswith("access-control-")]
    assert len(dict(found)) == len(found), "two of one name make a browser refuse both"
    return dict(found)


async def test_a_preflight_is_answered_without_credentials_and_without_the_service() -> None:
    limit = "rate_limit: {requests_per_second: 0.001, burst: 1, key: route}"
    async with serving(document(CORS, BY_KEY, limit), keys("web")) as access:
        client = await access.gateway.client()
        for _ in range(3):
            answer = await client.get(fields=PREFLIGHT, method="OPTIONS")
            assert (answer.status, answer.field("content-length"), answer.field("vary")) == (204, None, "Origin")
            assert cors_fields(answer) == {
                "access-control-allow-origin": SHOP, "access-control-allow-credentials": "true",
                "access-control-allow-methods": "GET, PUT", "access-control-allow-headers": "x-api-key",
                "access-control-max-age": "600",
            }  # fmt: skip
        assert access.upstream.requests == []
        assert (await client.get(fields=KEY + ORIGIN)).status == 200, "none of them was counted"


async def test_preflights_in_a_pipeline_are_answered_in_order() -> None:
    async with serving(document(CORS)) as access:
        client = await access.gateway.client()
        one = f"OPTIONS /orders HTTP/1.1\r\nHost: shop\r\n{PREFLIGHT}\r\n".encode()
        await client.send(one + b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n" + one)
        assert [(await client.answer()).status for _ in range(3)] == [204, 200, 204]


async def test_what_the_gateway_says_replaces_what_the_service_says() -> None:
    async def says_much(exchange: Exchange) -> None:
        await exchange.reply(
            fields=b"Access-Control-Allow-Origin: *\r\naccess-control-expose-headers: x\r\nvary: Accept\r\n"
        )

    async with serving(document(CORS), upstream=Upstream(says_much)) as access:
        client = await access.gateway.client()
        answer = await client.get(fields=ORIGIN)
        assert cors_fields(answer) == {
            "access-control-allow-origin": SHOP, "access-control-allow-credentials": "true",
        }  # fmt: skip
        assert sorted(value for name, value in answer.fields if name == "vary") == ["Accept", "Origin"]
        stranger = await client.get(fields="Origin: https://evil.example\r\n")
        assert (stranger.status, cors_fields(stranger)) == (200, {})
        assert sorted(value for name, value in stranger.fields if name == "vary") == ["Accept", "Origin"]


async def test_an_options_request_that_is_no_preflight_is_the_service_s() -> None:
    async with serving(document(CORS)) as access:
        client = await access.gateway.client()
        assert (await client.get(fields=ORIGIN, method="OPTIONS")).body == b"hello"
        assert access.upstream.requests[0].method == "OPTIONS"


async def test_pages_may_read_why_they_were_refused() -> None:
    limit = "rate_limit: {requests_per_second: 0.001, burst: 1, key: route}"
    async with serving(document(CORS, BY_KEY, limit), keys("web")) as access:
        client = await access.gateway.client()
        unknown = await client.get(fields=ORIGIN)
        await client.get(fields=ORIGIN + KEY)
        limited = await client.get(fields=ORIGIN + KEY)
        access.serve(document(CORS, BY_KEY), unused_port())
        broken = await client.get(fields=ORIGIN + KEY)
        assert [unknown.status, limited.status, broken.status // 100] == [401, 429, 5]
        for answer in (unknown, limited, broken):
            assert cors_fields(answer)["access-control-allow-origin"] == SHOP
            assert answer.field("vary") == "Origin"
