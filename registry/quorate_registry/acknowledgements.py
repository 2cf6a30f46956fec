"""Who has in force what: streams are asked, and say so, while somebody waits for it.

Theory of operation. A *question* is about one service and one revision. It is put to every stream of this node that
watches the service, and to each that begins while it waits: the stream is sent an `acknowledge` event, behind all
changes up to that revision, and its client posts an acknowledgement when it has them in force. To a question, a stream

- is *pending* until it has acknowledged the revision or a later one;
- *departs* when it ends without a word: its client is cut off, and may go on by what it knew. It is remembered by its
  name for RETURN_S seconds, so that a question that comes just then hears of it. It is found again where it connects
  next, at this node or another: who asked compares the answers of all (`drain`);
- *leaves* when its client has said so before: it is nobody's concern any more.

A stream without a name cannot acknowledge: it is listed, and not waited for. All state is that of streams and of
questions that wait; nothing of it is in the log, and without a question nothing is sent.

What a node remembers ends with it, while clients that had streams of it may be on their way to another node. So one
that has begun in a registry that was in use says for RETURN_S seconds that it is *settling*; and one that is gone is
known to the others for as long (`recent_nodes`).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quorate_core.clock import Clock
from quorate_core.errors import NotFound, TooManyRequests
from quorate_sdk.wire import Acknowledgement

from quorate_registry.catalog import Catalog
from quorate_registry.feed import CatalogFeed
from quorate_registry.watch import Subscription, Subscriptions

QUESTIONS_MAX = 64
"""That wait at once at one node."""
RETURN_S = 30.0
"""After that, a client that has not come back is taken for dead. The SDK comes back within a second when its stream
ends, and within some 25 when its node falls silent."""
DEPARTED_MAX = 20_000

V = TypeVar("V")
_Named = tuple[str, str]
"""Subscriber and namespace."""


@dataclass(frozen=True, slots=True)
class _Departed:
    """A named stream that has ended without a word. `revision`: what it had acknowledged."""

    subscription: Subscription
    revision: int
    at_s: float


@dataclass(slots=True, eq=False)
class _Question:
    namespace: str
    service: str
    revision: int
    pending: set[Subscription] = field(default_factory=set)
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def concerns(self, subscription: Subscription) -> bool:
        return (
            subscription.is_stream
            and subscription.namespace == self.namespace
            and subscription.watches(self.service)
        )  # fmt: skip

    def is_open_for(self, subscription: Subscription) -> bool:
        return bool(subscription.subscriber) and subscription.acknowledged < self.revision

    def settle(self, subscription: Subscription) -> None:
        self.pending.discard(subscription)
        if not self.pending:
            self.settled.set()


class Acknowledgements:
    """Of the streams of the node `node_name`."""

    def __init__(
        self, node_name: str, catalog: Catalog, feed: CatalogFeed, subscriptions: Subscriptions, clock: Clock
    ) -> None:
        self._node_name = node_name
        self._catalog = catalog
        self._feed = feed
        self._subscriptions = subscriptions
        self._clock = clock
        self._questions: set[_Question] = set()
        self._streams: dict[str, Subscription] = {}
        """Those that have a name, by their token."""
        self._named: dict[_Named, dict[str, Subscription]] = {}
        """The same, by their name; then by token."""
        self._departed: OrderedDict[str, _Departed] = OrderedDict()
        """By token, the oldest first."""
        self._departed_named: dict[_Named, dict[str, None]] = {}
        """Their tokens, by their name."""
        self._began_s = clock.monotonic_s()
        subscriptions.joined.append(self._joined)
        subscriptions.left.append(self._left)

    def take(self, said: Acknowledgement) -> None:
        """A client's word. Raises NotFound when it has no stream at this node, or when its name alone does not say
        which one is meant."""
        subscription = self._stream_of(said)
        # Nobody can have in force what this node has not told of.
        subscription.acknowledged = max(subscription.acknowledged, min(said.revision, self._catalog.revision))
        if said.leaving:
            subscription.is_leaving = True
        for question in tuple(self._questions):
            if said.leaving or subscription.acknowledged >= question.revision:
                question.settle(subscription)

    def settling_s(self) -> float:
        """For how many seconds more this node may lack clients that a former one had; 0: it has whoever is here."""
        if self._catalog.began_empty:
            return 0.0
        return max(0.0, self._began_s + RETURN_S - self._clock.monotonic_s())

    async def answer(self, namespace: str, service: str, revision: int, wait_s: float) -> dict[str, Any]:
        """Who watches `service` here, and has acknowledged `revision`, who has not after `wait_s` seconds at most, and
        who has departed. Raises DeadlineExceeded when this node does not reach the revision in time, NotFound when
        there is no such revision, TooManyRequests when too many wait."""
        ends_s = asyncio.get_running_loop().time() + wait_s
        await self._reach(revision)
        with self._asked(_Question(namespace, service, revision)) as question:
            if question.pending:
                try:
                    async with asyncio.timeout_at(ends_s):
                        await question.settled.wait()
                except TimeoutError:
                    pass  # then the answer says who is missing
            return self._report(question)

    async def _reach(self, revision: int) -> None:
        """Until everything up to `revision` is in the catalog: before that, a stream may lack it and not know."""
        if self._catalog.revision < revision:
            await self._feed.barrier()
        if self._catalog.revision < revision:
            raise NotFound(f"there is no revision {revision} yet")

    @contextmanager
    def _asked(self, question: _Question) -> Iterator[_Question]:
        if len(self._questions) >= QUESTIONS_MAX:
            raise TooManyRequests(f"{QUESTIONS_MAX} others wait for acknowledgements at this node; try again later")
        self._questions.add(question)
        try:
            self._put(question, self._subscriptions)
            yield question
        finally:
            self._questions.discard(question)

    def _put(self, question: _Question, subscriptions: Iterable[Subscription]) -> None:
        asked = [each for each in subscriptions if question.concerns(each) and question.is_open_for(each)]
        question.pending.update(asked)
        self._subscriptions.ask_to_acknowledge(asked)

    def _report(self, question: _Question) -> dict[str, Any]:
        streams = [subscription for subscription in self._subscriptions if question.concerns(subscription)]
        acknowledged: set[str] = set()
        pending = []
        for stream in streams:
            if stream.is_leaving:
                continue
            if stream.subscriber and stream.acknowledged >= question.revision:
                acknowledged.add(stream.subscriber)
            else:
                pending.append(_listed(stream.subscriber or stream.address, stream.acknowledged))
        self._forget_departed()
        departed = [
            _listed(gone.subscription.subscriber, gone.revision)
            for gone in self._departed.values()
            if question.concerns(gone.subscription) and gone.revision < question.revision
        ]
        anonymous = sum(1 for stream in streams if not stream.subscriber)
        return {
            "node": self._node_name, "revision": self._catalog.revision, "acknowledged": sorted(acknowledged),
            "pending": pending, "departed": departed, "anonymous": anonymous, "settling_s": self.settling_s(),
        }  # fmt: skip

    # Streams that come and go.

    def _joined(self, subscription: Subscription) -> None:
        if not subscription.is_stream:
            return
        if subscription.subscriber:
            self._streams[subscription.token] = subscription
            self._named.setdefault(_named(subscription), {})[subscription.token] = subscription
            self._came_back(subscription)
        for question in self._questions:
            self._put(question, (subscription,))

    def _left(self, subscription: Subscription) -> None:
        if self._streams.pop(subscription.token, None) is None:
            return
        _remove(self._named, _named(subscription), subscription.token)
        if not subscription.is_leaving:
            gone = _Departed(subscription, subscription.acknowledged, self._clock.monotonic_s())
            self._departed[subscription.token] = gone
            self._departed_named.setdefault(_named(subscription), {})[subscription.token] = None
            self._forget_departed()
        for question in tuple(self._questions):
            question.settle(subscription)

    def _came_back(self, subscription: Subscription) -> None:
        """One departed stream of that name is this one; it is asked anew."""
        tokens = self._departed_named.get(_named(subscription))
        if tokens:
            self._drop_departed(next(iter(tokens)))

    def _drop_departed(self, token: str) -> None:
        gone = self._departed.pop(token)
        _remove(self._departed_named, _named(gone.subscription), token)

    def _forget_departed(self) -> None:
        oldest_s = self._clock.monotonic_s() - RETURN_S
        while self._departed:
            token, gone = next(iter(self._departed.items()))
            if gone.at_s > oldest_s and len(self._departed) <= DEPARTED_MAX:
                return
            self._drop_departed(token)

    def _stream_of(self, said: Acknowledgement) -> Subscription:
        named = self._named.get((said.subscriber, said.namespace), {})
        if said.stream:
            found = named.get(said.stream)
            if found is None:
                raise NotFound(f"{said.subscriber} has no stream {said.stream} of {said.namespace} at this node")
            return found
        if len(named) != 1:
            raise NotFound(
                f"{said.subscriber} has {len(named)} streams of {said.namespace} at this node; say which one is meant"
            )
        return next(iter(named.values()))


def _named(subscription: Subscription) -> _Named:
    return subscription.subscriber, subscription.namespace


def _remove(index: dict[_Named, dict[str, V]], name: _Named, token: str) -> None:
    index[name].pop(token)
    if not index[name]:
        del index[name]


def _listed(subscriber: str, revision: int) -> dict[str, Any]:
    return {"subscriber": subscriber, "revision": revision}
