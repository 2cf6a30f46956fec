"""What travels between services: one fact about one aggregate, with its place in that aggregate's order."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """A fact that one service tells others.

    `id` is unique within `source` and stays the same however often the event is sent; consumers know duplicates by
    the two. `sequence` counts the events of one aggregate from 1, without gaps.
    """

    id: str
    source: str
    """A URI reference that names the producing service, such as `/quorate/order`."""
    type: str
    """Name and version, such as `quorate.order.placed.v1`."""
    aggregate_id: str
    sequence: int
    occurred_at_s: float
    """Seconds since the Unix epoch."""
    data: dict[str, Any]
    """What JSON can say; its schema belongs to `type`."""
