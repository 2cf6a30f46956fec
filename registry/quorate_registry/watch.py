"""Watchers of the registry: each has a queue of names, newest wins, so that a slow one costs no more than a set.

What a watcher is sent: first a snapshot, or, when it resumes and the changes since are remembered, a delta (a bookmark
when there are none); then a delta for each change of what it watches, several put together when it is slow; and
bookmarks, which say that nothing else has changed up to a revision. Those with a name are asked, when somebody drains
an instance, to acknowledge what they have in force.

To send a change to thousands takes a tenth of a second, in which the node must not fall silent to its peers. So what is
published is offered to all at once, and they are woken WAKES_A_TURN at a time, each turn of the event loop some more;
who is still to be woken gets the newest state when its turn comes.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager

from quorate_core.errors import TooManyRequests
from quorate_core.sse import encode_event

from quorate_registry.catalog import Catalog, Interest
from quorate_registry.model import InstanceName

SUBSCRIPTIONS_MAX = 20_000
"""Watchers and blocking queries of one node."""
PENDING_NAMES_MAX = 8_192
"""A watcher that is further behind gets a snapshot in place of a delta."""

WAKES_A_TURN = 250
"""Some 8 ms of sending small events."""


class Subscription:
    """One watcher's queue. `subscriber` is the name by which it acknowledges; empty when it does not. `address` is for
    people. A blocking query is no stream."""

    def __init__(
        self, interest: Interest, subscriber: str = "", address: str = "", token: str = "", *, is_stream: bool = True
    ) -> None:
        self.interest = interest
        self.subscriber = subscriber
        self.address = address
        self.token = token
        """Names it on this node."""
        self.is_stream = is_stream
        self.acknowledged = 0
        """The newest revision that it has said to have in force."""
        self.is_leaving = False
        """It has said that it ends, in good order."""
        self._pending: dict[InstanceName, None] = {}
        self._overflown = False
        self._bookmark_due = self._acknowledge_due = False
        self._wake = asyncio.Event()
        self.is_to_be_woken = False
        """It waits for its turn to be, and need not be put in line again."""

    @property
    def namespace(self) -> str:
        return self.interest.namespace

    @property
    def services(self) -> frozenset[str] | None:
        """Those that it watches by name; None for all of the namespace."""
        return self.interest.services

    def watches(self, service: str) -> bool:
        return self.interest.covers(service)

    def offer(self, name: InstanceName) -> None:
        self._pending[name] = None
        if len(self._pending) > PENDING_NAMES_MAX:
            self._pending.clear()
            self._overflown = True

    def offer_bookmark(self) -> None:
        self._bookmark_due = True

    def wake(self) -> None:
        """There is something to send, or may be."""
        self.is_to_be_woken = False
        self._wake.set()

    def offer_acknowledge(self) -> None:
        """Ask it to say what it has in force, behind whatever is pending."""
        self._acknowledge_due = True

    async def wait(self) -> None:
        """Until there is something to send."""
        await self._wake.wait()

    def clear(self) -> None:
        """Whatever was pending is in what is being sent."""
        self._pending.clear()
        self._overflown = self._bookmark_due = False
        self._wake.clear()

    def take(self, catalog: Catalog) -> bytes | None:
        """The next event for what is pending, as of the catalog's revision, and behind it the question what is in
        force, when somebody wants to know; None when nothing is."""
        names, overflown, bookmark_due = tuple(self._pending), self._overflown, self._bookmark_due
        acknowledge_due, self._acknowledge_due = self._acknowledge_due, False
        self.clear()
        event = b""
        if overflown:
            event = snapshot_event(catalog, self)
        elif names:
            event = delta_event(catalog, names)
        elif bookmark_due:
            event = bookmark_event(catalog)
        if acknowledge_due:
            question = b'{"revision":%d,"stream":"%b"}' % (catalog.revision, self.token.encode())
            event += encode_event("acknowledge", question)
        return event or None


class Subscriptions:
    """All watchers of a node, found by what they watch: a change wakes those who asked for it and nobody else."""

    def __init__(self) -> None:
        self._by_service: dict[tuple[str, str], set[Subscription]] = {}
        self._by_namespace: dict[str, set[Subscription]] = {}
        self._all: set[Subscription] = set()
        self._numbers = itertools.count(1)
        self._due: deque[Subscription] = deque()
        """To be woken; each is in it once."""
        self._is_waking = False
        self.joined: list[Callable[[Subscription], None]] = []
        """Called when one has begun to watch, and `left` when it has ended."""
        self.left: list[Callable[[Subscription], None]] = []

    def __len__(self) -> int:
        return len(self._all)

    def require_room(self) -> None:
        """Raises TooManyRequests when this node has as many watchers as it may have."""
        if len(self._all) >= SUBSCRIPTIONS_MAX:
            raise TooManyRequests(f"this node has {SUBSCRIPTIONS_MAX} watchers already; ask another node")

    def __iter__(self) -> Iterator[Subscription]:
        return iter(tuple(self._all))

    @contextmanager
    def subscribed(
        self, interest: Interest, subscriber: str = "", address: str = "", *, is_stream: bool = True
    ) -> Iterator[Subscription]:
        """Raises TooManyRequests as `require_room`."""
        self.require_room()
        token = str(next(self._numbers))
        subscription = Subscription(interest, subscriber, address, token, is_stream=is_stream)
        self._all.add(subscription)
        for watchers in self._indexes(subscription):
            watchers.add(subscription)
        for told in self.joined:
            told(subscription)
        try:
            yield subscription
        finally:
            self._all.discard(subscription)
            for watchers in self._indexes(subscription):
                watchers.discard(subscription)
            self._drop_empty(subscription)
            for told in self.left:
                told(subscription)

    def publish(self, names: Iterable[InstanceName]) -> None:
        for name in names:
            for subscription in self._by_service.get((name.namespace, name.service), ()):
                subscription.offer(name)
                self._put_in_line(subscription)
            for subscription in self._by_namespace.get(name.namespace, ()):
                if subscription.interest.covers(name.service):
                    subscription.offer(name)
                    self._put_in_line(subscription)
        self._begin_to_wake()

    def publish_bookmark(self) -> None:
        for subscription in self._all:
            subscription.offer_bookmark()
            self._put_in_line(subscription)
        self._begin_to_wake()

    def ask_to_acknowledge(self, asked: Iterable[Subscription]) -> None:
        """Let them say what they have in force."""
        for subscription in asked:
            subscription.offer_acknowledge()
            self._put_in_line(subscription)
        self._begin_to_wake()

    def _put_in_line(self, subscription: Subscription) -> None:
        if not subscription.is_to_be_woken:
            subscription.is_to_be_woken = True
            self._due.append(subscription)

    def _begin_to_wake(self) -> None:
        if not self._is_waking:
            self._wake_some()

    def _wake_some(self) -> None:
        for _ in range(min(WAKES_A_TURN, len(self._due))):
            self._due.popleft().wake()
        self._is_waking = bool(self._due)
        if self._is_waking:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _indexes(self, subscription: Subscription) -> list[set[Subscription]]:
        """One with prefixes is asked for all changes of its namespace, since any may be of a service to come."""
        namespace, services, prefixes = subscription.interest
        if services is None or prefixes:
            return [self._by_namespace.setdefault(namespace, set())]
        return [self._by_service.setdefault((namespace, service), set()) for service in services]

    def _drop_empty(self, subscription: Subscription) -> None:
        namespace, services, prefixes = subscription.interest
        if services is None or prefixes:
            if not self._by_namespace[namespace]:
                del self._by_namespace[namespace]
            return
        for service in services:
            if not self._by_service[namespace, service]:
                del self._by_service[namespace, service]


async def watch_events(
    catalog: Catalog,
    subscriptions: Subscriptions,
    interest: Interest,
    resume_revision: int | None,
    subscriber: str = "",
    address: str = "",
) -> AsyncGenerator[bytes, None]:
    """Encoded events of one watch, without end. `resume_revision`: what the watcher has already."""
    with subscriptions.subscribed(interest, subscriber, address) as subscription:
        # NB: nothing is awaited between subscribing and the first event, so no change falls between them.
        yield first_event(catalog, subscription, resume_revision)
        while True:
            await subscription.wait()
            event = subscription.take(catalog)
            if event is not None:
                yield event


def first_event(catalog: Catalog, subscription: Subscription, resume_revision: int | None) -> bytes:
    if resume_revision is None:
        return snapshot_event(catalog, subscription)
    names = catalog.changes_since(resume_revision, subscription.interest)
    if names is None:
        return snapshot_event(catalog, subscription)
    return delta_event(catalog, names) if names else bookmark_event(catalog)


def snapshot_event(catalog: Catalog, subscription: Subscription) -> bytes:
    body = catalog.snapshot_body(subscription.interest)
    return encode_event("snapshot", body, catalog.revision)


def delta_event(catalog: Catalog, names: tuple[InstanceName, ...]) -> bytes:
    return encode_event("delta", catalog.delta_body(names), catalog.revision)


def bookmark_event(catalog: Catalog) -> bytes:
    return encode_event("bookmark", b'{"revision":%d}' % catalog.revision, catalog.revision)
