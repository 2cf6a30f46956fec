"""CloudEvents 1.0 over HTTP, sent in binary content mode, received in binary or structured mode.

The order of one aggregate travels in the CloudEvents extension `sequence`, the aggregate in `subject`.
"""

import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_http, to_binary_event
from cloudevents.core.exceptions import BaseCloudEventException
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from quorate_core.errors import Forbidden, InvalidRequest, Unauthenticated

from quorate_messaging.delivery import DELIVERED, Outcome, Verdict, verdict_of_status
from quorate_messaging.event import Event

ANSWER_CHARS_MAX = 300
"""How much of a refusal is kept for people to read."""
NAME_CHARS_MAX = 64
URI_CHARS_MAX = 200
_PASSED_ON = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"})
_SEQUENCE = re.compile(r"^[0-9]{1,10}$")


class Answer(Protocol):
    @property
    def status_code(self) -> int: ...

    @property
    def text(self) -> str: ...


class Sender(Protocol):
    """What of `httpx.AsyncClient` is needed."""

    async def post(self, url: str, *, content: bytes, headers: Mapping[str, str]) -> Answer: ...


class HttpBus:
    """Posts each event to the one consumer of its type.

    `destinations` gives the consumer's URL by event type. `token`, when there is one, goes along as a bearer token.
    """

    def __init__(self, sender: Sender, destinations: Mapping[str, str], token: str | None = None) -> None:
        self._sender = sender
        self._destinations = dict(destinations)
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    async def publish(self, event: Event) -> Outcome:
        url = self._destinations.get(event.type)
        if url is None:
            return Outcome(Verdict.REFUSED, f"nobody consumes {event.type}")
        message = to_binary_event(_cloud_event(event))
        try:
            answer = await self._sender.post(url, content=message.body, headers={**message.headers, **self._headers})
        except Exception as error:  # whatever an injected sender raises: the event was not answered
            return Outcome(Verdict.RETRY, f"{url}: {type(error).__name__}: {error}")
        verdict = verdict_of_status(answer.status_code)
        if verdict is Verdict.DELIVERED:
            return DELIVERED
        return Outcome(verdict, f"{url} answered {answer.status_code}: {answer.text[:ANSWER_CHARS_MAX]}")


def _cloud_event(event: Event) -> CloudEvent:
    attributes: dict[str, Any] = {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.aggregate_id,
        "time": datetime.fromtimestamp(event.occurred_at_s, UTC),
        "datacontenttype": "application/json",
        "sequence": f"{event.sequence:010d}",
    }
    return CloudEvent(attributes, event.data)


def require_sender(headers: Mapping[str, str], token: str | None) -> None:
    """Raise Unauthenticated or Forbidden unless a request for the events' path comes from a fellow service.

    With a `token`, the request must bring it. Without one it must come directly: what a gateway or proxy has passed on
    (RFC 7239, and the headers before it) comes from outside, and outsiders tell no facts.
    """
    names = {name.lower(): value for name, value in headers.items()}
    if token is not None:
        offered = names.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(offered.encode(), token.encode()):
            raise Unauthenticated("events are taken from services that bring the token")
    elif not _PASSED_ON.isdisjoint(names):
        raise Forbidden("events are taken from services directly, not through a gateway")


def event_of_request(headers: Mapping[str, str], body: bytes) -> Event:
    """The event that an HTTP request brings. Raises InvalidRequest that says what is wrong with it."""
    names = {name.lower(): value for name, value in headers.items()}
    binary = any(name.startswith("ce-") for name in names)
    media_type = names.get("content-type", "").partition(";")[0].strip().lower()
    if not binary and media_type != JSONFormat.CONTENT_TYPE:
        raise InvalidRequest(f"no CloudEvent: neither ce- headers nor content type {JSONFormat.CONTENT_TYPE}")
    try:
        cloud_event = from_http(HTTPMessage(names, body), JSONFormat(), _as_sent)
    except BaseCloudEventException as error:
        raise InvalidRequest(f"no CloudEvent: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        # The library leaves JSON of another shape, and dates that are none, to fail where they are used.
        raise InvalidRequest(f"no CloudEvent: it cannot be read ({type(error).__name__})") from error
    return _checked(cloud_event)


def _as_sent(attributes: dict[str, Any], data: dict[str, Any] | str | bytes | None) -> CloudEvent:
    # The library makes up an id and a time where there are none: the same event would be new each time it comes.
    for name in ("id", "time"):
        if name not in attributes:
            raise InvalidRequest(f"the event's {name} is missing")
    return CloudEvent(attributes, data)


def _checked(cloud_event: BaseCloudEvent) -> Event:
    data = cloud_event.get_data()
    if not isinstance(data, dict):
        raise InvalidRequest("the event's data is no JSON object")
    sequence = cloud_event.get_extension("sequence")
    if not isinstance(sequence, str) or not _SEQUENCE.match(sequence):
        raise InvalidRequest("the event's sequence is missing or no number of at most ten digits")
    time = cloud_event.get_time()
    if time is None:
        raise InvalidRequest("the event's time is missing")
    return Event(
        id=_bounded("id", cloud_event.get_id(), NAME_CHARS_MAX),
        source=_bounded("source", cloud_event.get_source(), URI_CHARS_MAX),
        type=_bounded("type", cloud_event.get_type(), URI_CHARS_MAX),
        aggregate_id=_bounded("subject", cloud_event.get_subject(), NAME_CHARS_MAX),
        sequence=int(sequence),
        occurred_at_s=time.timestamp(),
        data=data,
    )


def _bounded(attribute: str, value: str | None, chars_max: int) -> str:
    if not value or len(value) > chars_max or not value.isprintable():
        raise InvalidRequest(f"the event's {attribute} is missing, longer than {chars_max} characters, or unprintable")
    return value
