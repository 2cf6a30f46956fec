"""What a worker is told: the difference between what it has and what is served now. Pure.

Theory of operation. `Feed` remembers what the worker has been sent, and `next_update` makes one message of all that is
other now. There is no queue: an update is made only when the one before was applied, so that a worker that is slow is
sent fewer and larger ones, and never what has been overtaken. A worker that is new has nothing, and so is sent
everything: to begin again is to make a new `Feed`.

What is sent is in proportion to what has changed: of endpoints, those that came, changed or went; the routes document
and the API keys only when others are in force.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import BaseModel
from quorate_core.errors import InvariantViolation
from quorate_resilience import BreakerState

from quorate_gateway.documents.access import ApiKeysDocument
from quorate_gateway.matching import Endpoint
from quorate_gateway.served import Forced
from quorate_gateway.snapshot import EMPTY, Snapshot
from quorate_gateway.workers.messages import SentEndpoint, Update

DOCUMENTS_REMEMBERED = 4
"""Encoded ones: all workers are sent the same."""
_FORCED: Mapping[BreakerState, Forced] = {BreakerState.FORCED_OPEN: "open", BreakerState.FORCED_CLOSED: "closed"}


@dataclass(frozen=True, slots=True)
class Told:
    """All that a worker is to know. Snapshot, document and keys are compared as objects: another one is another
    version. `forced` has the routes whose breakers an operator has forced. `number` grows with each that is told."""

    snapshot: Snapshot = EMPTY
    api_keys: ApiKeysDocument | None = None
    forced: Mapping[str, Forced] = field(default_factory=dict)
    number: int = 0


class Feed:
    """One worker's."""

    def __init__(self) -> None:
        self._sent = Told()
        self._is_new = True
        self.number = 0
        """Of the newest update."""
        self.applied = 0
        """Of the newest one that the worker has applied."""
        self.applied_revision = 0
        """The newest of routes and registry in it."""
        self.told_applied = 0
        """The number of the newest `Told` that the worker is known to serve by."""

    @property
    def is_waiting(self) -> bool:
        """Whether an update is on its way."""
        return self.applied < self.number

    def next_update(self, now: Told) -> Update | None:
        """What is other; None when nothing is, or is known yet, or while one is on its way."""
        sent = self._sent
        if self.is_waiting or now.snapshot is EMPTY:
            return None
        if not self._is_new and _is_same(sent, now):
            self.told_applied = now.number
            return None
        put, gone = _endpoint_changes(sent.snapshot.endpoints, now.snapshot.endpoints)
        has_document = now.snapshot.document is not sent.snapshot.document
        has_keys = now.api_keys is not None and now.api_keys is not sent.api_keys
        forced: dict[str, Forced | None] = dict.fromkeys(sent.forced.keys() - now.forced.keys())
        forced.update((name, to) for name, to in now.forced.items() if sent.forced.get(name) != to)
        revisions = now.snapshot.revisions
        self.number += 1
        self._sent, self._is_new = now, False
        return Update(
            self.number,
            (revisions.routes_version, revisions.routes_revision, revisions.registry_revision),
            encoded(now.snapshot.document) if has_document else None,
            encoded(now.api_keys) if has_keys and now.api_keys is not None else None,
            put, gone, forced,
        )  # fmt: skip

    def was_applied(self, number: int) -> None:
        """The worker says so."""
        if number != self.number or not self.is_waiting:
            raise InvariantViolation(f"update {number} was applied, of which {self.number} is on its way")
        self.applied = number
        self.told_applied = self._sent.number
        self.applied_revision = self._sent.snapshot.revisions.newest


def forced_breakers(snapshot: Snapshot) -> Mapping[str, Forced]:
    """By the name of their route."""
    return {
        route.name: _FORCED[route.breaker.state]
        for route in snapshot.routes if route.breaker is not None and route.breaker.state in _FORCED
    }  # fmt: skip


@lru_cache(DOCUMENTS_REMEMBERED)
def _encoded(document: "_Same") -> bytes:
    return document.model.model_dump_json(exclude_unset=True).encode()


class _Same:
    """A model by its identity."""

    __slots__ = ("model",)

    def __init__(self, model: BaseModel) -> None:
        self.model = model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.model is other.model

    def __hash__(self) -> int:
        return id(self.model)


def encoded(document: BaseModel) -> bytes:
    """As JSON that its type reads again; worked out once for all workers."""
    return _encoded(_Same(document))


def _is_same(sent: Told, now: Told) -> bool:
    return sent.snapshot is now.snapshot and sent.api_keys is now.api_keys and sent.forced == now.forced


_Endpoints = Mapping[str, tuple[Endpoint, ...]]


def _endpoint_changes(sent: _Endpoints, now: _Endpoints) -> tuple[dict[str, list[SentEndpoint]], dict[str, list[str]]]:
    """Those to put and those that are gone, by service. A service that is the same has the very same tuple."""
    put: dict[str, list[SentEndpoint]] = {}
    gone: dict[str, list[str]] = {}
    for service in sent.keys() | now.keys():
        before, after = sent.get(service, ()), now.get(service, ())
        if before is after:
            continue
        known = {endpoint.authority: endpoint for endpoint in before}
        others = [SentEndpoint.of(one) for one in after if known.get(one.authority) != one]
        left = known.keys() - {one.authority for one in after}
        if others:
            put[service] = others
        if left:
            gone[service] = sorted(left)
    return put, gone
