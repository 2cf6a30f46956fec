"""The short way to the list of a service: which plain GETs may go past FastAPI, and what they ask. Pure.

A list is bytes that are there already, and FastAPI's way to them costs ten times what they do. So what most clients ask
all the time, a list with nothing said of it but its consistency, is recognised by its target, and answered by the same
function that the route has. Whatever is anything else, such as a filter or a blocking query, is the route's.
"""

import re
from collections.abc import Coroutine
from typing import Any, Literal, Protocol

from quorate_core.asgi import GetResolver, GetResponder
from quorate_core.plain_requests import Headers
from quorate_sdk.wire import NAME_PATTERN
from starlette.responses import Response

_NAME = NAME_PATTERN.removeprefix("^").removesuffix("$")
_TARGET = re.compile(rf"/v1/registry/(?P<namespace>{_NAME})/services/(?P<service>{_NAME})")
Consistency = Literal["linearizable", "stale"]
_CONSISTENCIES: dict[str, Consistency] = {
    "": "linearizable",
    "consistency=linearizable": "linearizable",
    "consistency=stale": "stale",
}


class AnswerList(Protocol):
    """The function of the route."""

    def __call__(
        self, namespace: str, service: str, consistency: Consistency, *, if_none_match: str | None, accept_encoding: str
    ) -> Coroutine[Any, Any, Response]: ...


def plain_lists(answer: AnswerList) -> GetResolver:
    def resolve(path: str, query: str, headers: Headers) -> GetResponder | None:
        target, consistency = _TARGET.fullmatch(path), _CONSISTENCIES.get(query)
        if target is None or consistency is None:
            return None
        conditions = [value.decode("latin-1") for name, value in headers if name == b"if-none-match"]
        encodings = [value.decode("latin-1") for name, value in headers if name == b"accept-encoding"]
        if len(conditions) > 1 or len(encodings) > 1:
            return None  # which of them counts is the route's to know
        return lambda: answer(
            target["namespace"], target["service"], consistency,
            if_none_match=next(iter(conditions), None), accept_encoding=next(iter(encodings), ""),
        )  # fmt: skip

    return resolve
