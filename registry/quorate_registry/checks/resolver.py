"""Names to addresses, by the machine's own resolver, which blocks: in a few threads of its own.

The loop's default threads serve others, such as the store's disk; names that nobody answers for would take them all.
Here they take RESOLVER_THREADS_MAX at most, QUESTIONS_WAITING_MAX wait, and who comes after that is refused at once.
The threads are daemons, so that a node that stops does not wait for a resolver's time-out.
"""

import asyncio
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address

from quorate_registry.checks.addresses import IpAddress
from quorate_registry.checks.outcome import Undecided

RESOLVER_THREADS_MAX = 8
QUESTIONS_WAITING_MAX = 1_024
ADDRESSES_MAX = 4
"""Of one name; more are not tried."""

Lookup = Callable[[str], Sequence[str]]
"""A host's addresses. Blocks; raises OSError."""

_Question = tuple[str, asyncio.AbstractEventLoop, "asyncio.Future[Sequence[IpAddress]]"]


class NameUnresolved(Exception):
    """Says why."""


def system_lookup(host: str) -> Sequence[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]).partition("%")[0] for *_, address in found]


class Resolver:
    """Threads start with the first name; a host that is an address needs none."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._questions: queue.Queue[_Question] = queue.Queue(QUESTIONS_WAITING_MAX)
        self._threads = 0

    async def resolve(self, host: str) -> Sequence[IpAddress]:
        """At least one and at most ADDRESSES_MAX, in the system's order. Raises NameUnresolved, and Undecided when too
        many ask. The caller bounds the time; what it gives up is skipped when its turn comes."""
        try:
            return [ip_address(host)]
        except ValueError:
            pass
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[IpAddress]] = loop.create_future()
        try:
            self._questions.put_nowait((host, loop, answer))
        except queue.Full:
            raise Undecided(f"{QUESTIONS_WAITING_MAX} names wait for the resolver already") from None
        if self._threads < RESOLVER_THREADS_MAX:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"check-resolver-{self._threads}", daemon=True).start()
        return await answer

    def _serve(self) -> None:
        while True:
            host, loop, answer = self._questions.get()
            if answer.done():  # given up meanwhile
                continue
            found: Sequence[IpAddress] | NameUnresolved
            try:
                texts = dict.fromkeys(self._lookup(host))
                found = [ip_address(text) for text in texts][:ADDRESSES_MAX] or NameUnresolved(f"{host} has no address")
            except (OSError, ValueError) as error:  # UnicodeError is a ValueError: labels that no name may have
                found = NameUnresolved(f"{host} cannot be resolved: {getattr(error, 'strerror', None) or error}")
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_settle, answer, found)


def _settle(answer: "asyncio.Future[Sequence[IpAddress]]", found: Sequence[IpAddress] | NameUnresolved) -> None:
    if answer.done():
        return
    if isinstance(found, NameUnresolved):
        answer.set_exception(found)
    else:
        answer.set_result(found)
