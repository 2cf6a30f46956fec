"""The messages of `/v3/watch`, as etcd's gateway reads and writes them. Pure.

A stream's lines for one batch of events differ between its watchers only in their ids, so what is long, the events
themselves, is encoded once for all of them (`EventEncoder`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

import msgspec
from msgspec import UNSET, UnsetType

from quorate_store.model import REQUEST_BYTES_MAX, Event, EventKind, WatchBatch
from quorate_store.v3.codec import Bytes, Flag, Header, Integer, decode, either, enum, int64
from quorate_store.v3.kv_messages import WireKeyValue, wire_kv

RESPONSE_BYTES_MAX = REQUEST_BYTES_MAX + 512 * 1024
"""Keys and values in one answer: as etcd bounds what it splits for `fragment`. A single revision may have more, for
those who have not asked for fragments."""
ENCODED_BATCHES_MAX = 64
"""Kept for those who will want the same. All watchers of a range get a batch within a few turns of the event loop."""
ENCODED_BYTES_KEPT_MAX = 64 * 1024
"""What is longer than that is encoded for each watcher anew."""
STREAM_WATCH_ID = -1
"""Stands for no watch: of a stream as a whole, or one that was refused."""
FIRST_KEY = b"\0"
"""What an empty key means: the lowest that there is."""


class Filter(IntEnum):
    NOPUT = 0
    NODELETE = 1


@dataclass(frozen=True, slots=True)
class CreateWatch:
    """`watch_id` 0: any. `start_revision` 0: from now on."""

    key: bytes
    range_end: bytes
    start_revision: int
    previous: bool
    progress_notify: bool
    filters: frozenset[int]
    watch_id: int
    fragment: bool

    @property
    def is_empty(self) -> bool:
        """No key can be in the range."""
        return len(self.range_end) > 0 and self.range_end != FIRST_KEY and self.range_end <= self.key


@dataclass(frozen=True, slots=True)
class CancelWatch:
    watch_id: int


@dataclass(frozen=True, slots=True)
class AskProgress:
    pass


WatchRequest = CreateWatch | CancelWatch | AskProgress


class _WireCreate(msgspec.Struct):
    key: Bytes = None
    range_end: Bytes = None
    range_end_camel: Bytes = msgspec.field(default=None, name="rangeEnd")
    start_revision: Integer = None
    start_revision_camel: Integer = msgspec.field(default=None, name="startRevision")
    progress_notify: Flag = None
    progress_notify_camel: Flag = msgspec.field(default=None, name="progressNotify")
    filters: list[int | str] | None = None
    prev_kv: Flag = None
    prev_kv_camel: Flag = msgspec.field(default=None, name="prevKv")
    watch_id: Integer = None
    watch_id_camel: Integer = msgspec.field(default=None, name="watchId")
    fragment: Flag = None


class _WireCancel(msgspec.Struct):
    watch_id: Integer = None
    watch_id_camel: Integer = msgspec.field(default=None, name="watchId")


class _WireProgress(msgspec.Struct):
    pass


class _WireRequest(msgspec.Struct):
    create_request: _WireCreate | None = None
    create_request_camel: _WireCreate | None = msgspec.field(default=None, name="createRequest")
    cancel_request: _WireCancel | None = None
    cancel_request_camel: _WireCancel | None = msgspec.field(default=None, name="cancelRequest")
    progress_request: _WireProgress | None = None
    progress_request_camel: _WireProgress | None = msgspec.field(default=None, name="progressRequest")


_FILTER = "etcdserverpb.WatchCreateRequest_FilterType"

_request_decoder = msgspec.json.Decoder(_WireRequest)
_encode = msgspec.json.Encoder().encode


def decode_watch_request(message: bytes) -> WatchRequest | None:
    """None for a message that asks for nothing. Raises InvalidRequest."""
    wire = decode(_request_decoder, message, _WireRequest)
    create = either(wire.create_request_camel, wire.create_request)
    cancel = either(wire.cancel_request_camel, wire.cancel_request)
    if create is not None:
        return _create(create)
    if cancel is not None:
        return CancelWatch(int64(either(cancel.watch_id_camel, cancel.watch_id)))
    return None if either(wire.progress_request_camel, wire.progress_request) is None else AskProgress()


def _create(wire: _WireCreate) -> CreateWatch:
    return CreateWatch(
        key=wire.key or FIRST_KEY,
        range_end=either(wire.range_end_camel, wire.range_end) or b"",
        start_revision=int64(either(wire.start_revision_camel, wire.start_revision)),
        previous=bool(either(wire.prev_kv_camel, wire.prev_kv)),
        progress_notify=bool(either(wire.progress_notify_camel, wire.progress_notify)),
        filters=frozenset(_filter(given) for given in wire.filters or ()),
        watch_id=int64(either(wire.watch_id_camel, wire.watch_id)),
        fragment=bool(wire.fragment),
    )


def _filter(given: int | str) -> int:
    """By name or number; a number that means nothing filters nothing."""
    return given if isinstance(given, int) else enum(_FILTER, Filter, given)


class _WireEvent(msgspec.Struct, frozen=True):
    type: str | UnsetType
    kv: WireKeyValue
    prev_kv: WireKeyValue | UnsetType = UNSET


class _WireReply(msgspec.Struct, frozen=True):
    """What is said of a watch, besides events."""

    header: Header
    watch_id: str | UnsetType = UNSET
    created: bool | UnsetType = UNSET
    canceled: bool | UnsetType = UNSET
    compact_revision: str | UnsetType = UNSET
    cancel_reason: str | UnsetType = UNSET


class _WireLine(msgspec.Struct, frozen=True):
    result: _WireReply


def encode_reply(
    header: Header,
    watch_id: int = 0,
    *,
    created: bool = False,
    canceled: bool = False,
    compact_revision: int = 0,
    cancel_reason: str = "",
) -> bytes:
    """A line that says something of a watch; with nothing but a header and an id, that all up to there was sent."""
    reply = _WireReply(
        header,
        watch_id=str(watch_id) if watch_id else UNSET,
        created=True if created else UNSET,
        canceled=True if canceled else UNSET,
        compact_revision=str(compact_revision) if compact_revision else UNSET,
        cancel_reason=cancel_reason or UNSET,
    )
    return _encode(_WireLine(reply)) + b"\n"


@dataclass(frozen=True, slots=True)
class EncodedEvents:
    """A JSON array of events up to `revision`. `is_cut`: the rest of that revision's are in the next one."""

    revision: int
    events: bytes
    is_cut: bool


def encode_events(header: Header, watch_id: int, part: EncodedEvents) -> bytes:
    return b"".join(
        (
            b'{"result":{"header":', _encode(header),
            b',"watch_id":"%d"' % watch_id if watch_id else b"",
            b',"fragment":true' if part.is_cut else b"",
            b',"events":', part.events, b"}}\n",
        )
    )  # fmt: skip


class EventEncoder:
    """Encodes batches, each once for all watchers that get the very same."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], tuple[WatchBatch, tuple[EncodedEvents, ...]]] = {}
        """By the batch's identity, which holds as long as the batch is kept beside it; oldest first."""

    def encode(self, batch: WatchBatch, *, fragment: bool) -> Iterable[EncodedEvents]:
        """What carries `batch`, one or more. Those of a large one are made as they are taken."""
        known = self._kept.get((id(batch), fragment))
        if known is not None:
            return known[1]
        size_bytes = sum(map(_size_bytes, batch.events))
        parts = (_encode_part(part, is_cut=is_cut) for part, is_cut in in_responses(batch, fragment=fragment))
        if size_bytes > ENCODED_BYTES_KEPT_MAX:
            return parts
        if len(self._kept) >= ENCODED_BATCHES_MAX:
            del self._kept[next(iter(self._kept))]
        kept = self._kept[id(batch), fragment] = batch, tuple(parts)
        return kept[1]


def _encode_part(batch: WatchBatch, *, is_cut: bool) -> EncodedEvents:
    return EncodedEvents(batch.revision, _encode([_wire_event(event) for event in batch.events]), is_cut)


def _wire_event(event: Event) -> _WireEvent:
    return _WireEvent(
        "DELETE" if event.kind is EventKind.DELETE else UNSET,
        wire_kv(event.kv),
        UNSET if event.previous is None else wire_kv(event.previous),
    )


def only_wanted(batch: WatchBatch, filters: frozenset[int]) -> WatchBatch:
    """`batch` without the events that `filters` hold back."""
    if not filters:
        return batch
    held_back = {EventKind.PUT: Filter.NOPUT, EventKind.DELETE: Filter.NODELETE}
    return WatchBatch(batch.revision, tuple(event for event in batch.events if held_back[event.kind] not in filters))


def in_responses(batch: WatchBatch, *, fragment: bool) -> Iterator[tuple[WatchBatch, bool]]:
    """`batch` as the answers that carry it, each with whether it is a fragment that is not the last of its revision.
    None has more than RESPONSE_BYTES_MAX, but for a single revision, or with `fragment` a single event, that does."""
    if sum(map(_size_bytes, batch.events)) <= RESPONSE_BYTES_MAX:
        yield batch, False
        return
    waiting: list[Event] = []
    waiting_bytes = 0
    for piece in _pieces(batch.events, fragment=fragment):
        piece_bytes = sum(map(_size_bytes, piece))
        if waiting and waiting_bytes + piece_bytes > RESPONSE_BYTES_MAX:
            is_cut = waiting[-1].kv.mod_revision == piece[0].kv.mod_revision
            yield _batch_of(waiting), is_cut
            waiting, waiting_bytes = [], 0
        waiting += piece
        waiting_bytes += piece_bytes
    yield _batch_of(waiting), False


def _pieces(events: Sequence[Event], *, fragment: bool) -> Iterator[list[Event]]:
    """What is not to be divided: events of one revision, or each event."""
    if fragment:
        yield from ([event] for event in events)
    else:
        yield from (list(found) for _, found in groupby(events, key=lambda event: event.kv.mod_revision))


def _batch_of(events: list[Event]) -> WatchBatch:
    return WatchBatch(events[-1].kv.mod_revision, tuple(events))


def _size_bytes(event: Event) -> int:
    before = event.previous
    return len(event.kv.key) + len(event.kv.value) + (0 if before is None else len(before.key) + len(before.value))
