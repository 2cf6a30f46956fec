"""What each of the gateway's policies costs a request, alone, in microseconds: `python -m benchmarks.policies`.

Each is compiled from a routes document as the gateway compiles it, and called as the data plane calls it, with the head
of a small request from a kept connection. The cost of calling a function that does nothing is taken off. The lowest of
some rounds is shown, since what disturbs a measurement only ever adds to it; so these are costs with warm caches, and
their sum is less than what a request takes among others.
"""

import argparse
import hashlib
import itertools
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from timeit import Timer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from quorate_gateway.documents.access import ApiKey, ApiKeysDocument
from quorate_gateway.matching import CompileContext, CompiledRoute
from quorate_gateway.policies.admission import Admission, enter
from quorate_gateway.policies.api_keys import ApiKeys
from quorate_gateway.policies.caller import Caller
from quorate_gateway.proxy.balancing import Balancing
from quorate_gateway.proxy.framing import RequestHead, read_request_head
from quorate_gateway.routes import parse_routes
from quorate_gateway.snapshot import Revisions, Snapshot, build_snapshot
from quorate_resilience import Permit
from quorate_resilience.shedding import LoadShedder
from quorate_sdk.wire import Instance, InstanceStatus

from benchmarks.tables import table

CALLS = 20_000
ROUNDS = 7
INSTANCES = (3, 100)
ROUTES_COUNTS = (10, 1_000)
KEYS = 1_000
ISSUER, AUDIENCE, ORIGIN = "https://id.example", "shop", "https://shop.example"
CALLER = Caller(b"192.0.2.7")
HIGH = "1000000"
"""A second, of every rate limit: all requests are counted, and none refused."""

Action = Callable[[], object]
Cost = tuple[str, str, Action]
"""The group, what is measured, and one call of it."""


def compiled(route: str, context: CompileContext | None = None, providers: str = "", instances: int = 3) -> Snapshot:
    """A snapshot with one route, given by what it has beside its match and service."""
    document = parse_routes(
        f"{providers}routes:\n  - {{name: hello, match: {{path_prefix: /hello}}, service: hello{route}}}\n"
    )
    found = [_instance(number) for number in range(instances)]
    return build_snapshot(document, lambda _service: found, Revisions(1, 1, 1), None, context)


def _instance(number: int) -> Instance:
    return Instance(
        namespace="default", service="hello", id=f"hello-{number}", host="127.0.0.1", port=10_000 + number,
        scheme="http", weight=100, zone=f"zone-{number % 3}", version="v1", metadata={}, status=InstanceStatus.UP,
        ttl_s=10, revision=1,
    )  # fmt: skip


def head(fields: str = "", path: str = "/hello/world", method: str = "GET") -> RequestHead:
    request = f"{method} {path} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench\r\nAccept: */*\r\n{fields}\r\n"
    found = read_request_head(request.encode(), None, 0)
    if found is None:
        raise AssertionError("the head is whole")
    return found


def admission(route: CompiledRoute, request: RequestHead) -> Action:
    """One request of a known caller meeting the route's policies; it must be let in."""
    admit = route.admit
    if admit is None:
        raise AssertionError("the route has a policy")
    if not isinstance(admit(request, CALLER, time.monotonic()), Admission):
        raise AssertionError("the policy lets the request in")
    return lambda: admit(request, CALLER, time.monotonic())


def balancers() -> Iterator[Cost]:
    """A pick with its begin and end, as each try has them."""
    policies = ("round_robin", "weighted_round_robin", "random", "least_request", "peak_ewma", "consistent_hash")
    for instances, policy in itertools.product(INSTANCES, policies):
        snapshot = compiled(f", balance: {{policy: {policy}}}", instances=instances)
        balancing = Balancing(time.monotonic)
        balancing.swap(snapshot)
        [route] = snapshot.routes
        yield "balancing", f"{policy}, {instances} instances", _one_try(balancing, route)


def _one_try(balancing: Balancing, route: CompiledRoute) -> Action:
    [destination], fields = route.destinations, head().fields

    def act() -> None:
        key = route.balance_key(fields, CALLER)
        endpoint = balancing.pick(route, destination, (), key)
        if endpoint is None:
            raise AssertionError("there are endpoints")
        now_s = time.monotonic()
        balancing.began(endpoint, now_s)
        balancing.ended(endpoint, now_s, 0.001, False)

    return act


def limiters() -> Iterator[Cost]:
    """One key, and then as many as there are clients: the state of one is in no cache."""
    kinds = {
        "token_bucket": f"requests_per_second: {HIGH}",
        "fixed_window": f"algorithm: fixed_window, requests: {HIGH}",
        "sliding_window": f"algorithm: sliding_window, requests: {HIGH}",
    }
    for name, fields in kinds.items():
        [route] = compiled(f", rate_limit: {{{fields}}}").routes
        yield "rate limit", f"{name}, by route", admission(route, head())
        [route] = compiled(f", rate_limit: {{{fields}, key: 'header:X-Tenant'}}").routes
        requests = itertools.cycle([head(f"X-Tenant: {number}\r\n") for number in range(KEYS)])
        yield "rate limit", f"{name}, {KEYS:,} keys of a header", _among(route, requests)


def _among(route: CompiledRoute, requests: Iterator[RequestHead]) -> Action:
    admit = route.admit
    if admit is None:
        raise AssertionError("the route has a limit")
    return lambda: admit(next(requests), CALLER, time.monotonic())


def protections() -> Iterator[Cost]:
    [route] = compiled("").routes
    load = LoadShedder()

    def guarded() -> None:
        now_s = time.monotonic()
        permit = enter(route, load, now_s)
        if not isinstance(permit, Permit):
            raise AssertionError("the breaker lets the request through")
        permit.responded(now_s)
        permit.success(now_s)

    yield "protection", "circuit breaker and load shedding, a call that succeeds", guarded
    [unguarded] = compiled(", circuit_breaker: off").routes
    yield "protection", "load shedding alone", lambda: enter(unguarded, load, time.monotonic())


def identities() -> Iterator[Cost]:
    key = secrets.token_urlsafe(32)
    context = CompileContext(api_keys=ApiKeys())
    digests = [hashlib.sha256(secrets.token_bytes(8)).hexdigest() for _ in range(KEYS - 1)]
    keys = [ApiKey(id=f"key-{number}", sha256=digest) for number, digest in enumerate(digests)]
    mine = ApiKey(id="mine", sha256=hashlib.sha256(key.encode()).hexdigest())
    context.api_keys.replace(ApiKeysDocument(keys=[*keys, mine]))
    [route] = compiled(", auth: {api_key: {}}", context).routes
    yield "auth", f"API key, one of {KEYS:,}", admission(route, head(f"X-Api-Key: {key}\r\n"))

    private = ec.generate_private_key(ec.SECP256R1())
    jwk = {**ECAlgorithm.to_jwk(private.public_key(), as_dict=True), "kid": "one"}
    jwk.pop("key_ops", None)
    provider = {"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": json.dumps({"keys": [jwk]})}
    providers = f"jwt_providers: {json.dumps({'id': provider})}\n"
    [route] = compiled(", auth: {jwt: {provider: id}}", CompileContext(), providers).routes
    requests = [head(f"Authorization: Bearer {_token(private, number)}\r\n") for number in range(200)]
    yield "auth", "JWT that was seen before", admission(route, requests[0])
    # Verifiers that know none of these tokens are made anew when all have been seen, which costs a call about 1 µs.
    yield "auth", "JWT for the first time (ES256)", _verified_anew(providers, requests)


def _token(private: ec.EllipticCurvePrivateKey, number: int) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": f"user-{number}", "exp": int(time.time()) + 3_600}
    return jwt.encode(claims, private, "ES256", {"kid": "one"})


def _verified_anew(providers: str, requests: Sequence[RequestHead]) -> Action:
    fresh: list[Action] = []

    def act() -> object:
        if not fresh:
            [route] = compiled(", auth: {jwt: {provider: id}}", CompileContext(), providers).routes
            admit = route.admit
            if admit is None:
                raise AssertionError("the route asks for a token")
            fresh.extend(partial(admit, request, CALLER, time.monotonic()) for request in requests)
        return fresh.pop()()

    return act


def headers() -> Iterator[Cost]:
    [route] = compiled(f", cors: {{origins: ['{ORIGIN}']}}").routes
    yield "CORS", "a request of an allowed origin", admission(route, head(f"Origin: {ORIGIN}\r\n"))
    preflight = head(f"Origin: {ORIGIN}\r\nAccess-Control-Request-Method: POST\r\n", method="OPTIONS")
    cors = route.cors
    if cors is not None:
        yield "CORS", "a preflight, answered", lambda: cors.preflight(preflight.fields, preflight)
    [route] = compiled(
        ", request_headers: {set: {x-from: gateway}, remove: [user-agent]}, response_headers: {add: {x-by: gateway}}"
    ).routes
    block = head().fields.forward
    changes = {"request: one set, one removed": route.request_changes, "answer: one added": route.response_changes}
    for name, change in changes.items():
        if change is not None:
            yield "headers", name, _bound(change, block)
    [route] = compiled(", rewrite: {path_prefix: /v2}").routes
    if route.rewrite is not None:
        yield "headers", "path rewritten by prefix", _bound(route.rewrite, b"/hello/world?full=1")


def _bound(change: Callable[[bytes], bytes], data: bytes) -> Action:
    return lambda: change(data)


def matching() -> Iterator[Cost]:
    for count in ROUTES_COUNTS:
        for kind, match, path in (
            ("exact", "path: /service-{0}/orders/list", "/service-{0}/orders/list"),
            ("template", "path_template: '/service-{0}/orders/{{id}}/lines'", "/service-{0}/orders/17/lines"),
            ("prefix", "path_prefix: /service-{0}", "/service-{0}/orders/17"),
        ):
            routes = "".join(
                f"  - {{name: r{number}, match: {{{match.format(number)}}}, service: hello}}\n"
                for number in range(count)
            )
            snapshot = build_snapshot(parse_routes(f"routes:\n{routes}"), lambda _service: (), Revisions(1, 1, 1))
            yield "matching", f"{kind}, {count:,} routes", _match(snapshot, head(path=path.format(count - 1)))


def _match(snapshot: Snapshot, request: RequestHead) -> Action:
    table_, fields = snapshot.table, request.fields
    if table_.match(request.method, request.path, fields.host, fields.block, request.target) is None:
        raise AssertionError("a route takes the request")
    return lambda: table_.match(request.method, request.path, fields.host, fields.block, request.target)


def cost_us(action: Action, calls: int, rounds: int) -> float:
    """Of one call, by the best round."""
    return min(Timer(action).repeat(rounds, calls)) / calls * 1e6


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="policies", description="The cost of each policy of the gateway, alone")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"of each in a round; {CALLS:,} when left out")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of which the best counts; {ROUNDS} when left out")
    options = parser.parse_args(arguments)
    nothing_us = cost_us(lambda: None, options.calls, options.rounds)
    costs = itertools.chain(matching(), headers(), identities(), limiters(), protections(), balancers())
    rows = [
        [group, what, f"{max(0.0, cost_us(action, options.calls, options.rounds) - nothing_us):.2f}"]
        for group, what, action in costs
    ]
    print(table(["policy", "what", "µs a request"], rows, 2))  # noqa: T201 - this is a command, and its output
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
