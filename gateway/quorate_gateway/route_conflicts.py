"""What is wrong with a routes document whose every value is right: parts that contradict each other, or mean nothing.

Each is told with its place. What can be seen in one model alone is checked by that model.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from quorate_core.documents import DocumentError

from quorate_gateway.documents.changes import NAME_IN_FORM
from quorate_gateway.documents.errors_in_place import ERRORS_MAX, Place, did_you_mean, error_at
from quorate_gateway.documents.strict import template_segments
from quorate_gateway.yaml_lines import LinedDocument

if TYPE_CHECKING:
    from quorate_gateway.routes import Route, RoutesDocument

Found = tuple[Place, str]


def find_conflicts(document: "RoutesDocument", lined: LinedDocument) -> Sequence[DocumentError]:
    """In the document's order, at most so many as are told of one document."""
    errors: list[DocumentError] = []
    for place, message in _all(document):
        if len(errors) == ERRORS_MAX:
            break
        errors.append(error_at(lined, place, message))
    return errors


def _all(document: "RoutesDocument") -> Iterator[Found]:
    names: dict[str, int] = {}
    rivals: dict[tuple[str, str], list[int]] = {}
    for index, route in enumerate(document.routes):
        place: Place = ("routes", index)
        first = names.setdefault(route.label, index)
        if first != index:
            hint = "" if route.name else "; give it a name of its own"
            yield (*place, "name"), f"routes {first} and {index} are both called {route.label!r}{hint}"
        before = rivals.setdefault(route.match.shape, [])
        hiding = next((one for one in before if document.routes[one].match.asks_no_more_than(route.match)), None)
        if hiding is not None:
            label = document.routes[hiding].label
            yield (*place, "match"), f"can never be reached: route {hiding} ({label!r}) takes all its requests"
        before.append(index)
        yield from _of_rewrite(route, place)
        yield from _of_cors(route, place)
        yield from _of_destinations(route, place)
        yield from _of_identity(route, place, document)


def _of_rewrite(route: "Route", place: Place) -> Iterator[Found]:
    rewrite, template = route.rewrite, route.match.path_template
    if rewrite is None:
        return
    if rewrite.path_prefix is not None and template is not None:
        yield (*place, "rewrite", "path_prefix"), "a 'path_template' matches whole paths: rewrite them by 'path'"
    if rewrite.path is None:
        return
    if template is None:
        text = "'rewrite.path' is for routes with a 'path_template'; others have 'path_prefix'"
        yield (*place, "rewrite", "path"), text
        return
    known = [segment.name for segment in template_segments(template) if segment.name]
    for name in NAME_IN_FORM.findall(rewrite.path):
        if name not in known:
            yield (*place, "rewrite", "path"), f"the template has no {name!r}{did_you_mean(name, known)}"


def _of_cors(route: "Route", place: Place) -> Iterator[Found]:
    changes = route.response_headers
    if route.cors is None or changes is None:
        return
    for kind, names in (("set", changes.set), ("add", changes.add)):
        for name in names:
            if name.startswith("access-control-"):
                text = f"{name!r} is answered by 'cors': browsers refuse two answers"
                yield (*place, "response_headers", kind, name), text


def _of_destinations(route: "Route", place: Place) -> Iterator[Found]:
    if route.version is not None and route.service is None:
        yield (*place, "version"), "'version' belongs to 'service'; in a split, each share has its own"
    if route.split is None:
        if route.split_key is not None:
            yield (*place, "split_key"), "'split_key' is for routes with a 'split'"
        return
    seen: dict[tuple[str, str | None], int] = {}
    for index, share in enumerate(route.split):
        first = seen.setdefault((share.service, share.version), index)
        if first != index:
            yield (*place, "split", index), f"shares {first} and {index} lead to the same; add their weights up"


def _of_identity(route: "Route", place: Place, document: "RoutesDocument") -> Iterator[Found]:
    """What is counted or hashed by who the caller is needs to know who that is."""
    auth = route.auth
    if auth is not None and auth.jwt is not None and auth.jwt.provider not in document.jwt_providers:
        hint = did_you_mean(auth.jwt.provider, document.jwt_providers) or "; there are no 'jwt_providers'"
        yield (*place, "auth", "jwt", "provider"), f"no provider is called {auth.jwt.provider!r}{hint}"
    keys: list[tuple[Place, str]] = [((*place, "balance", "key"), route.balance.key)]
    if route.rate_limit is not None:
        keys.append(((*place, "rate_limit", "key"), route.rate_limit.key))
    if route.split_key is not None:
        keys.append(((*place, "split_key"), route.split_key))
    for where, key in keys:
        if key == "api_key" and (auth is None or auth.api_key is None):
            yield where, "'api_key' is for routes that ask for one by 'auth.api_key'"
        if key.startswith("jwt:") and (auth is None or auth.jwt is None):
            yield where, f"{key!r} is for routes that ask for a token by 'auth.jwt'"
