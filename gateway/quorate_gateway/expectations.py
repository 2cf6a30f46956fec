"""What a routes document is expected to do: requests, and the route that must take each.

    GET /orders/7 -> orders                                   # by the route's name, or the name of its service
    POST /orders?full=1 host=shop.example x-channel=web -> orders
    DELETE /orders/7 -> none                                  # no route takes it

They stand in the document itself (`expect`), and go with it: a change that sends a request elsewhere is refused where
it is published. Each is answered by the gateway's own parser of heads and its own table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator, StringConstraints
from quorate_core.documents import DocumentError

from quorate_gateway.documents.errors_in_place import ERRORS_MAX, did_you_mean, error_at
from quorate_gateway.documents.match import RouteMatch
from quorate_gateway.proxy.framing import RequestHead, read_request_head
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.route_table import RouteRule, RouteTable
from quorate_gateway.yaml_lines import LinedDocument

if TYPE_CHECKING:
    from quorate_gateway.routes import Route, RoutesDocument

EXPECTATIONS_MAX = 1_000
NOTHING = "none"
_ARROW = "->"
_FORM = "an expectation reads like 'GET /orders/7 host=shop.example x-channel=web -> orders', or '-> none'"


class Expectation(NamedTuple):
    """`wanted`: a route's name, or a service's; None for no route at all."""

    text: str
    head: RequestHead
    wanted: str | None


def parse_expectation(text: str) -> Expectation:
    """Raises ValueError."""
    request, arrow, wanted = text.partition(_ARROW)
    words, wanted = request.split(), wanted.strip()
    if len(words) < 2 or not arrow or not wanted or " " in wanted:
        raise ValueError(_FORM)
    method, target, *fields = words
    lines = [f"{method} {target} HTTP/1.1"]
    pairs = [field.partition("=") for field in fields]
    if not all(equals for _name, equals, _value in pairs):
        raise ValueError(_FORM)
    if not any(name.lower() == "host" for name, _equals, _value in pairs):
        lines.append("host: localhost")
    lines += [f"{name}: {value}" for name, _equals, value in pairs]
    try:
        head = read_request_head(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    except UnicodeEncodeError as error:
        raise ValueError("a request is written in ASCII; other characters are percent-encoded") from error
    except Refusal as refusal:
        raise ValueError(f"the gateway refuses this request itself, whatever the routes: {refusal.detail}") from refusal
    if head is None:
        raise ValueError(_FORM)
    return Expectation(text, head, None if wanted == NOTHING else wanted)


def _check_form(text: str) -> str:
    parse_expectation(text)
    return text


ExpectationText = Annotated[str, StringConstraints(max_length=2_048), AfterValidator(_check_form)]


@dataclass(frozen=True, slots=True)
class PlainRoute:
    """A route as far as matching goes."""

    name: str
    match: RouteMatch
    rule: RouteRule
    source: "Route"


def plain_table(document: "RoutesDocument") -> RouteTable[PlainRoute]:
    """A table of routes that lead nowhere."""
    return RouteTable(
        [
            PlainRoute(route.label, route.match, RouteRule(route.match, takes_preflights=route.cors is not None), route)
            for route in document.routes
        ]
    )


def failure_of(table: RouteTable[PlainRoute], expectation: Expectation) -> str | None:
    """What happens instead, with the reasons; None when it is met."""
    head, wanted = expectation.head, expectation.wanted
    steps = table.explain(head.method, head.path, head.fields.host, head.fields.block, head.target)
    taken = next((step.route for step in steps if step.refused_by is None), None)
    if taken is None:
        if wanted is None:
            return None
        reasons = [f"{step.route.name!r} not by its {step.refused_by}" for step in steps]
        return "no route takes it" + (f" ({', '.join(reasons)})" if reasons else "")
    if wanted is not None and wanted in {taken.name, *(share.service for share in taken.source.destinations)}:
        return None
    services = sorted({share.service for share in taken.source.destinations})
    return f"route {taken.name!r} takes it, which leads to {' and '.join(services)}"


def failed_expectations(document: "RoutesDocument", lined: LinedDocument) -> Sequence[DocumentError]:
    """Each `expect` of the document that does not hold, at its line."""
    return [
        error_at(lined, ("expect", index), message) for index, message in _failures(document)
    ][:ERRORS_MAX]  # fmt: skip


def _failures(document: "RoutesDocument") -> Iterator[tuple[int, str]]:
    if not document.expect:
        return
    table = plain_table(document)
    names = {name for route in document.routes for name in (route.label, *(one.service for one in route.destinations))}
    for index, text in enumerate(document.expect):
        expectation = parse_expectation(text)
        if expectation.wanted is not None and expectation.wanted not in names:
            hint = did_you_mean(expectation.wanted, sorted(names))
            yield index, f"no route and no service is called {expectation.wanted!r}{hint}"
            continue
        failure = failure_of(table, expectation)
        if failure is not None:
            yield index, f"expected: {text}; but {failure}"
