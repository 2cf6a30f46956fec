"""Where a provider's keys come from, and how they are kept when it does not answer.

Theory of operation. The source of an inline key set has its keys, and that is all. That of an address is

- *unknown*: never fetched. Tokens cannot be judged, and get 503 rather than 401: they may well be valid;
- *fresh*: fetched. They are fetched again at an interval, and earlier when a token names a key that is not among them,
  as after a provider has changed its keys in a hurry; that at most once a minute, since any caller can name any key;
- *kept*: the last fetch failed. The keys serve on for as long as it takes: a provider that is away locks nobody out who
  holds a token. It is asked again soon, and more rarely the longer it is away.

A fetch is bounded in time and bytes and follows no redirect: the document says where keys come from, and nobody else
does. One fetch is under way at a time.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httpx
import structlog
from quorate_core.clock import Clock

from quorate_gateway.policies.key_sets import KEY_SET_BYTES_MAX, KeySet, read_key_set

log = structlog.get_logger(__name__)

REASON_CHARS_MAX = 200
_ACCEPTED = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}
"""Nothing packed: what is read is as long as what comes."""


@dataclass(frozen=True, slots=True)
class RefreshTimes:
    """When a provider is asked for its keys again, in seconds."""

    interval_s: float = 300.0
    """While all is well: for how long a key that a provider has withdrawn still counts."""
    retry_s: float = 1.0
    """After a first failure; doubled after each further one."""
    retry_max_s: float = 30.0
    unknown_kid_interval_s: float = 60.0
    """Between fetches because of tokens that name an unknown key."""
    timeout_s: float = 5.0
    """Of one fetch, whole."""


class KeySource(Protocol):
    @property
    def keys(self) -> KeySet | None:
        """None while nothing is known."""
        ...

    def want_newer(self) -> bool:
        """A token names a key that is not there. Whether the provider may still tell of it: it is being asked, or does
        not answer."""
        ...


@dataclass(frozen=True, slots=True)
class InlineKeys:
    """Keys that the document itself has."""

    keys: KeySet

    def want_newer(self) -> bool:
        return False


HttpClient = Callable[[], httpx.AsyncClient]


def jwks_client() -> httpx.AsyncClient:
    """By the environment's proxies and certificates (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE), since providers are often
    outside. Follows no redirect."""
    return httpx.AsyncClient(headers=_ACCEPTED)


class FetchedKeys:
    """The keys of an address. `run` keeps them fresh for as long as it runs."""

    def __init__(self, url: str, clock: Clock, times: RefreshTimes, client: HttpClient = jwks_client) -> None:
        self.url = url
        self.keys: KeySet | None = None
        self.failure: str | None = None
        """Why the last fetch failed; None when it did not."""
        self.fetches = 0
        """That have ended, well or not."""
        self.failures = 0
        """Of these, the ones that failed."""
        self.fetched_at_s: float | None = None
        """When the last one that did not fail ended, by the monotonic clock."""
        self.fetched = asyncio.Event()
        """Set once the first one has."""
        self._clock = clock
        self._times = times
        self._client = client
        self._wanted = asyncio.Event()
        self._is_fetching = False
        self._asked_at_s: float | None = None
        """When a token last caused a fetch."""

    def want_newer(self) -> bool:
        if self._is_fetching or self._wanted.is_set() or self.failure is not None:
            return True
        now_s = self._clock.monotonic_s()
        if self._asked_at_s is not None and now_s - self._asked_at_s < self._times.unknown_kid_interval_s:
            return False
        self._asked_at_s = now_s
        self._wanted.set()
        return True

    async def run(self) -> None:
        failures = 0
        while True:
            self._is_fetching = True
            self._wanted.clear()
            try:
                failures = 0 if await self._fetch() else failures + 1
            finally:
                self._is_fetching = False
            await self._until_due(self._pause_s(failures))

    def _pause_s(self, failures: int) -> float:
        if not failures:
            return self._times.interval_s
        return min(self._times.retry_max_s, self._times.retry_s * 2.0 ** min(failures - 1, 30))

    async def _until_due(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _fetch(self) -> bool:
        try:
            async with asyncio.timeout(self._times.timeout_s):
                keys = read_key_set(await self._read())
            if not len(keys):
                raise ValueError("; ".join(("no key of the set can be used", *keys.left_out)))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ValueError) as error:
            self._failed(error)
            return False
        finally:
            self.fetches += 1
            self.fetched.set()
        if self.keys != keys:
            log.info("token_keys_changed", url=self.url, keys=len(keys), left_out=keys.left_out[:3])
            self.keys = keys
        self.failure = None
        self.fetched_at_s = self._clock.monotonic_s()
        return True

    async def _read(self) -> bytes:
        content = b""
        made = await asyncio.to_thread(self._client)  # it reads the certificates, which takes some milliseconds
        async with made as client, client.stream("GET", self.url) as response:
            if response.status_code != 200:
                raise ValueError(f"it answered {response.status_code}")
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > KEY_SET_BYTES_MAX:
                    raise ValueError(f"it answered more than {KEY_SET_BYTES_MAX} bytes")
        return content

    def _failed(self, error: Exception) -> None:
        """Told once for each reason, not at each try."""
        reason = (str(error) or type(error).__name__)[:REASON_CHARS_MAX]
        if reason != self.failure:
            log.warning("token_keys_not_fetched", url=self.url, reason=reason, kept=self.keys is not None)
        self.failure = reason
        self.failures += 1
