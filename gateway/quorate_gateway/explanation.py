"""Why a request goes where it goes: the data plane's own parser, table and policies, asked without sending anything.

It takes nothing from a limit, asks no breaker for a permit and counts nothing. What a split leaves to chance is told as
the shares; with a `split_key`, the one share of that caller is told.
"""

from collections.abc import Sequence

from pydantic import BaseModel
from quorate_core.errors import InvalidRequest

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit_keys import client_key
from quorate_gateway.policy_views import PolicyView, identity_met, limits_met
from quorate_gateway.proxy.framing import RequestHead, read_request_head
from quorate_gateway.proxy.limits import HEAD_BYTES_MAX
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.served import Served


class ConsideredView(BaseModel):
    route: str
    refused_by: str | None
    """`host`, `headers`, `query` or `method`; null for the route that takes the request."""


class ShareView(BaseModel):
    """One place that a route leads to. `endpoints` are those that take traffic now, of this version."""

    service: str
    version: str | None
    percent: float
    """Of the requests; 100 for the only place, or for the caller's own."""
    endpoints: list[str]


class Explanation(BaseModel):
    """`considered`: the routes whose path matches, in order; the last one takes the request when `route` is set.
    `policies` are those that it would then meet, in order; `rule` is what the gateway itself would answer, if it would.
    """

    route: str | None = None
    service: str | None = None
    """Of a split that is left to chance, null."""
    upstream_target: str | None = None
    upstream_host: str | None = None
    """What the service would see as Host."""
    endpoints: list[str] = []
    shares: list[ShareView] = []
    balance: str | None = None
    """How an endpoint is chosen."""
    rule: str | None = None
    considered: list[ConsideredView] = []
    policies: list[PolicyView] = []


def explain_request(
    served: Served, method: str, path: str, host: str, headers: Sequence[str], client: str
) -> Explanation:
    """`headers` are `name: value`. Raises InvalidRequest for what is no request at all."""
    try:
        head = _read(method, path, host, headers)
    except Refusal as refusal:
        return Explanation(rule=refusal.rule)
    arguments = (head.method, head.path, head.fields.host, head.fields.block, head.target)
    steps = served.snapshot.table.explain(*arguments)
    considered = [ConsideredView(route=step.route.name, refused_by=step.refused_by) for step in steps]
    taken: CompiledRoute | None = next((step.route for step in steps if step.refused_by is None), None)
    if taken is None:
        misses_method = any(step.refused_by == "method" for step in steps)
        return Explanation(rule="method-not-routed" if misses_method else "no-route", considered=considered)
    return _of_route(served, taken, head, client).model_copy(update={"considered": considered})


def _read(method: str, path: str, host: str, headers: Sequence[str]) -> RequestHead:
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *headers]
    if any("\r" in line or "\n" in line for line in lines):
        raise InvalidRequest("a line break cannot be part of a method, path, host or header")
    head = read_request_head(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))
    if head is None:
        raise InvalidRequest(f"this is no request with a head of at most {HEAD_BYTES_MAX} bytes")
    return head


def _of_route(served: Served, route: CompiledRoute, head: RequestHead, client: str) -> Explanation:
    caller = Caller(client_key(client.encode("ascii", "replace")))
    caller, identity = identity_met(route, head, caller, served.wall_s())
    policies = [*identity, *limits_met(route, head.fields, caller, served)]
    shares = _shares(served, route, head, caller)
    endpoints = [endpoint for share in shares for endpoint in share.endpoints]
    rule = next((policy.rule for policy in policies if not policy.lets_through), None if endpoints else "no-endpoint")
    target = head.target if route.rewrite is None else route.rewrite(head.target)
    host = head.fields.host if route.rewrite_host is None else route.rewrite_host
    return Explanation(
        route=route.name, service=shares[0].service if len(shares) == 1 else None,
        upstream_target=target.decode("latin-1"), upstream_host=host.decode("latin-1"),
        endpoints=endpoints, shares=shares, balance=route.balance.policy, rule=rule, policies=policies,
    )  # fmt: skip


def _shares(served: Served, route: CompiledRoute, head: RequestHead, caller: Caller) -> list[ShareView]:
    chosen = route.destinations
    if len(chosen) > 1 and route.split_key is not None and route.split_key(head.fields, caller):
        chosen = (route.choose_destination(head.fields, caller),)
    total = sum(destination.weight for destination in chosen)
    return [
        ShareView(
            service=destination.service, version=destination.version,
            percent=round(100 * destination.weight / total, 3),
            endpoints=[
                f"{endpoint.instance_id} ({endpoint.authority})"
                for endpoint in served.snapshot.endpoints.get(destination.service, ())
                if destination.version in (None, endpoint.version)
            ],
        )
        for destination in chosen if destination.weight
    ]  # fmt: skip
