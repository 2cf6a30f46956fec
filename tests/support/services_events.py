"""Events as the requests that bring them."""

from typing import Any

from cloudevents.core.bindings.http import to_binary_event
from cloudevents.core.v1.event import CloudEvent


def as_request(type_: str, data: dict[str, Any], /, **changes: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of an event; `changes` replace attributes or `data`, None leaves an attribute out."""
    data = changes.pop("data", data)
    attributes = {"id": "e-1", "source": "/test", "type": type_, "subject": "o-1", "sequence": "0000000001"}
    message = to_binary_event(
        CloudEvent({**attributes, "datacontenttype": "application/json", **_given(changes)}, data)
    )
    absent = {f"ce-{name}" for name, value in changes.items() if value is None}
    return {name: value for name, value in message.headers.items() if name not in absent}, message.body


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}
