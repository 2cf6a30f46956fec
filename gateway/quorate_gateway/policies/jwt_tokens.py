"""Tokens (JWT, RFC 7519) by the best practices of RFC 8725: from what a caller presents to what its provider says.

PyJWT reads the signed form and verifies the signature. What goes before that, and after it, is decided here:

- The token must have the compact form of three segments, and a bounded size. Encrypted tokens are not accepted.
- Of its header, only `alg`, `kid`, `typ` and `crit` are looked at. `alg` must be one that the provider's document
  names; those are for public keys only, so that neither `none` nor a public key taken for a shared secret can be meant.
  `kid` chooses among the provider's keys, and nothing else: `jwk`, `jku`, `x5u` and `x5c`, by which a token brings its
  own key, mean nothing. With `crit`, a token asks for what is not understood here, and is refused.
- `iss` is the provider's, `aud` has one of its audiences, `exp` must be there. Times are compared with a leeway.

A token that was verified is remembered by its digest, so that it costs a hash and a look from then on. Its times are
compared at each request. Whatever changes the provider's keys makes all of its tokens forgotten.

Nothing here waits: verifying takes 20 to 100 us in the event loop, of ES384 and ES512 up to 400.
"""

import asyncio
import hashlib
import json
import math
import re
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jwt import PyJWK, PyJWS, PyJWTError
from quorate_core.clock import Clock, SystemClock
from quorate_core.tasks import TaskOwner

from quorate_gateway.documents.access import JwtProvider
from quorate_gateway.policies.key_sets import KID_CHARS_MAX, KeySet, read_key_set
from quorate_gateway.policies.key_source import (
    FetchedKeys,
    HttpClient,
    InlineKeys,
    KeySource,
    RefreshTimes,
    jwks_client,
)

TOKEN_BYTES_MAX = 8_192
HEADER_CHARS_MAX = 4_096
"""Of a token's first segment; certificates in it (`x5c`) take the most."""
SUBJECT_BYTES_MAX = 512
TOKENS_REMEMBERED = 2_048
"""Of each provider. Only tokens that it has signed are, so that nobody else can fill it."""
TIME_MAX = 2**53
"""Seconds that a number of JSON holds exactly."""

_COMPACT = re.compile(rb"([A-Za-z0-9_-]{1,%d})\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+" % HEADER_CHARS_MAX)
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""A token that says what it is must say that it is for access (RFC 9068) or nothing in particular: not, for one, that
it tells of a logout."""
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SIGNATURES = PyJWS()


class TokenRefused(Exception):
    """The token is not valid, for the reason in its text, which holds nothing that the caller chose."""


class KeysUnavailable(Exception):
    """Whether the token is valid cannot be said now: the provider's keys are not there."""


class Token(NamedTuple):
    """A verified one. Times are in seconds since the Unix epoch, the leeway included."""

    claims: Mapping[str, Any]
    subject: bytes
    """UTF-8; empty when there is none."""
    not_before_s: float
    expires_at_s: float


class _Header(NamedTuple):
    algorithm: str
    kid: str | None


class JwtVerifier:
    """Verifies the tokens of one provider."""

    __slots__ = ("_keys", "_remembered", "provider", "source")

    def __init__(self, provider: JwtProvider, source: KeySource) -> None:
        self.provider = provider
        self.source = source
        self._remembered: OrderedDict[bytes, Token] = OrderedDict()
        self._keys: KeySet | None = None
        """By which the remembered ones were verified."""

    def verify(self, token: bytes, wall_s: float) -> Token:
        """`wall_s`: now, in seconds since the Unix epoch. Raises TokenRefused and KeysUnavailable."""
        keys = self.source.keys
        if keys is None:
            raise KeysUnavailable("the keys of the token's provider could not be fetched yet")
        if keys is not self._keys:
            self._remembered.clear()
            self._keys = keys
        digest = hashlib.sha256(token).digest()
        known = self._remembered.get(digest)
        if known is None:
            known = self._remembered[digest] = self._read(token, keys)
            if len(self._remembered) > TOKENS_REMEMBERED:
                self._remembered.popitem(last=False)
        else:
            self._remembered.move_to_end(digest)
        if wall_s >= known.expires_at_s:
            del self._remembered[digest]
            raise TokenRefused("the token has expired")
        if wall_s < known.not_before_s:
            raise TokenRefused("the token is not valid yet")
        return known

    @property
    def remembered(self) -> int:
        return len(self._remembered)

    def _read(self, token: bytes, keys: KeySet) -> Token:
        header = _read_header(token)
        if header.algorithm not in self.provider.algorithms:
            raise TokenRefused("the token's algorithm is not one that its provider uses")
        key = keys.find(header.kid, header.algorithm)
        if key is None:
            if not keys.has(header.kid) and self.source.want_newer():
                raise KeysUnavailable("the token's key is not known yet, and the provider is being asked for it")
            raise TokenRefused("the token names no key of its provider that is for its algorithm")
        return self._read_claims(_verify_signature(token, key, header.algorithm))

    def _read_claims(self, payload: bytes) -> Token:
        claims = _read_object(payload)
        if claims is None:
            raise TokenRefused("the token holds no claims")
        if claims.get("iss") != self.provider.issuer:
            raise TokenRefused("the token is not from this issuer")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if not any(isinstance(one, str) and one in self.provider.audiences for one in audiences):
            raise TokenRefused("the token is not for this audience")
        subject = claims.get("sub", "")
        if not isinstance(subject, str) or len(subject.encode()) > SUBJECT_BYTES_MAX:
            raise TokenRefused(f"the token's 'sub' is no text of at most {SUBJECT_BYTES_MAX} bytes")
        expires_at_s, not_before_s = _read_time(claims, "exp"), _read_time(claims, "nbf")
        if expires_at_s is None:
            raise TokenRefused("the token does not say when it expires")
        leeway_s = self.provider.leeway_s
        return Token(
            claims=MappingProxyType(claims),
            subject=subject.encode(),
            not_before_s=-math.inf if not_before_s is None else not_before_s - leeway_s,
            expires_at_s=expires_at_s + leeway_s,
        )


class JwtVerifiers:
    """The verifiers of all providers that routes may name. Before `start`, and after its tasks have ended, nothing is
    fetched; what was fetched stays."""

    def __init__(
        self, clock: Clock | None = None, times: RefreshTimes | None = None, client: HttpClient = jwks_client
    ) -> None:
        self._clock = clock or SystemClock()
        self._times = times or RefreshTimes()
        self._client = client
        self._verifiers: dict[str, JwtVerifier] = {}
        self._sources: dict[str, FetchedKeys] = {}
        """By address: providers may share one."""
        self._tasks: TaskOwner | None = None
        self._fetching: dict[str, asyncio.Task[None]] = {}

    def __getitem__(self, name: str) -> JwtVerifier:
        """Raises KeyError for a provider that is not there."""
        return self._verifiers[name]

    @property
    def verifiers(self) -> Mapping[str, JwtVerifier]:
        return MappingProxyType(self._verifiers)

    @property
    def fetched(self) -> Mapping[str, FetchedKeys]:
        """By provider, of those whose keys have an address."""
        return {
            name: self._sources[verifier.provider.jwks_url]
            for name, verifier in self._verifiers.items()
            if verifier.provider.jwks_url is not None
        }

    def start(self, tasks: TaskOwner) -> None:
        """Fetch keys, and keep them fresh, in tasks of this owner."""
        self._tasks = tasks
        self._fetch_all()

    def replace(self, providers: Mapping[str, JwtProvider]) -> None:
        """These providers from now on. One that is unchanged keeps its verifier, and keys that were fetched serve all
        who name their address."""
        urls = {provider.jwks_url for provider in providers.values() if provider.jwks_url is not None}
        for gone in self._sources.keys() - urls:
            del self._sources[gone]
            task = self._fetching.pop(gone, None)
            if task is not None:
                task.cancel()
        for url in urls - self._sources.keys():
            self._sources[url] = FetchedKeys(url, self._clock, self._times, self._client)
        former = self._verifiers
        self._verifiers = {
            name: former[name]
            if name in former and former[name].provider == provider
            else JwtVerifier(provider, self._source_of(provider))
            for name, provider in providers.items()
        }
        self._fetch_all()

    async def until_fetched(self) -> None:
        """Until all keys of now were fetched once, well or not."""
        for source in tuple(self._sources.values()):
            await source.fetched.wait()

    def _source_of(self, provider: JwtProvider) -> KeySource:
        if provider.jwks_url is not None:
            return self._sources[provider.jwks_url]
        return InlineKeys(read_key_set(provider.jwks or ""))

    def _fetch_all(self) -> None:
        if self._tasks is None:
            return
        for url, source in self._sources.items():
            running = self._fetching.get(url)
            if running is None or running.done():
                self._fetching[url] = self._tasks.start(source.run(), "token-keys")


def _read_header(token: bytes) -> _Header:
    found = _COMPACT.fullmatch(token) if len(token) <= TOKEN_BYTES_MAX else None
    if found is None:
        raise TokenRefused(f"a token has three segments in base64url, and at most {TOKEN_BYTES_MAX} bytes")
    segment = found[1]
    try:
        header = _read_object(urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)))
    except ValueError:
        header = None
    if header is None:
        raise TokenRefused("the token's header is no JSON object in base64url")
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str):
        raise TokenRefused("the token does not say by which algorithm it is signed")
    if kid is not None and (not isinstance(kid, str) or len(kid) > KID_CHARS_MAX):
        raise TokenRefused(f"the token's 'kid' is no text of at most {KID_CHARS_MAX} characters")
    if "crit" in header or "b64" in header:
        raise TokenRefused("the token asks for an extension ('crit', 'b64') that is not understood here")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenRefused("the token's 'typ' is not that of an access token")
    return _Header(algorithm, kid)


def _verify_signature(token: bytes, key: PyJWK, algorithm: str) -> bytes:
    """The payload."""
    try:
        payload: bytes = _SIGNATURES.decode_complete(token, key, [algorithm])["payload"]
    except (PyJWTError, ValueError, TypeError) as error:
        raise TokenRefused("the token's signature is not its provider's") from error
    return payload


def _read_object(text: bytes) -> dict[str, Any] | None:
    """None for what is no JSON object, or one with text that no encoding has (half a surrogate pair)."""
    try:
        found = json.loads(text)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read_time(claims: Mapping[str, Any], name: str) -> float | None:
    """In seconds (RFC 7519, section 2, NumericDate); None when it is not there."""
    value = claims.get(name)
    if name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -TIME_MAX <= value <= TIME_MAX:
        raise TokenRefused(f"the token's {name!r} is no number of seconds")
    return float(value)
