"""Who may use a route: API keys, tokens, and the origins that browsers may ask from."""

import math
import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints, model_validator

from quorate_gateway.documents.strict import HeaderName, Method, Strict

KEYS_MAX = 5_000
"""What a document of the config center has room for."""
PROVIDERS_MAX = 16
ORIGINS_MAX = 64
CLAIMS_MAX = 8
CORS_MAX_AGE_S_MAX = 86_400

_NO_KEY_FIELDS = frozenset(
    {"authorization", "connection", "content-length", "cookie", "expect", "forwarded", "host", "origin",
     "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade", "x-request-id"}
)  # fmt: skip
_ORIGIN = re.compile(
    r"(https?)://((?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?", re.ASCII
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def _check_key_field(name: str) -> str:
    if name in _NO_KEY_FIELDS or name.startswith(("x-quorate-", "x_quorate_", "x-forwarded-")):
        raise ValueError(f"an API key does not come in {name!r}: that field means something else")
    return name


def _check_origin(origin: str) -> str:
    """As a browser writes one: scheme, host and the port that is not the scheme's own (RFC 6454, section 6.2)."""
    if origin in ("*", "null"):
        return origin
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        raise ValueError("an origin is 'https://shop.example', 'https://*.shop.example', 'null' or '*', without a path")
    scheme, host, port = found.groups()
    if port == _DEFAULT_PORTS[scheme]:
        raise ValueError(f"browsers leave the port of {scheme} out: write '{scheme}://{host}'")
    if port is not None and int(port) > 65_535:
        raise ValueError(f"there is no port {port}")
    return origin


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    try:
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or parts.username is not None or parts.fragment:
        raise ValueError("an address is 'https://host/path' or 'https://host:port/path', without a password in it")
    return url


def _check_moment(value: object) -> object:
    """Not a number: `20270131` would be taken for seconds, and be long past."""
    if isinstance(value, bool | int | float) or (isinstance(value, str) and _DATE.match(value) is None):
        raise ValueError("a time is written as 2027-01-31T00:00:00Z")
    return value


ProviderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$")]
KeyField = Annotated[HeaderName, AfterValidator(_check_key_field)]
Origin = Annotated[str, StringConstraints(max_length=256, to_lower=True), AfterValidator(_check_origin)]
Algorithm = Annotated[str, StringConstraints(pattern=r"^(RS|PS|ES)(256|384|512)$|^EdDSA$")]
KeysUrl = Annotated[str, StringConstraints(max_length=1_024, pattern=r"^https?://[!-~]+$"), AfterValidator(_check_url)]
ClaimName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ClaimValue = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ApiKeyAuth(Strict):
    """A key of the document `gateway/api-keys.yaml`, in a header field."""

    header: KeyField = "x-api-key"
    """The header field that holds the key."""
    keys: Annotated[list[KeyId], Field(min_length=1, max_length=KEYS_MAX)] | None = None
    """Only those with these ids; any, when left out."""


class JwtAuth(Strict):
    """A token in `Authorization: Bearer`, signed by a provider's key, of its issuer and audience, and in its time."""

    provider: ProviderName
    """One of `jwt_providers`."""
    claims: Annotated[dict[ClaimName, ClaimValue], Field(max_length=CLAIMS_MAX)] = Field(default_factory=dict)
    """All of them must be there: a claim that equals the text, or a list with it as a member. Of `scope` and `scp`, one
    of the words will do: `scope: orders.read`. Numbers and booleans count as they are written in JSON."""


class RouteAuth(Strict):
    """`api_key`, `jwt` or both. Whatever a request presents of them must be valid. What the caller proved goes to the
    service as `x-quorate-api-key-id` and `x-quorate-subject`, which no caller can set."""

    api_key: ApiKeyAuth | None = None
    """A key in a header field."""
    jwt: JwtAuth | None = None
    """A token in `Authorization`."""
    require: Literal["any", "all"] = "any"
    """With both: whether one of them is enough."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.api_key is None and self.jwt is None:
            raise ValueError("give 'api_key', 'jwt' or both")
        return self


class RouteCors(Strict):
    """Answers to browsers of other origins, preflights included (Fetch standard, CORS protocol). What the service
    itself says about CORS is left out."""

    origins: Annotated[list[Origin], Field(min_length=1, max_length=ORIGINS_MAX)]
    """`https://shop.example`, `https://*.shop.example` for every name below it, `"null"` for pages without an origin of
    their own, or `*` for everybody. `credentials` exclude the last two."""
    methods: Annotated[list[Method], Field(min_length=1, max_length=20)] = Field(
        default_factory=lambda: ["GET", "HEAD", "POST"]
    )
    """That such pages may use."""
    headers: Annotated[list[HeaderName], Field(max_length=64)] = Field(default_factory=list)
    """Of requests, besides those that are always allowed; with `auth`, its own must be named here too."""
    expose: Annotated[list[HeaderName], Field(max_length=64)] = Field(default_factory=list)
    """Of answers, besides those that pages may always read."""
    credentials: bool = False
    """Whether pages may send cookies and the like, and read the answer."""
    max_age_s: Annotated[int, Field(ge=0, le=CORS_MAX_AGE_S_MAX)] = 600
    """For how long a browser may remember the answer to a preflight."""

    @model_validator(mode="after")
    def _credentials_for_named_origins(self) -> Self:
        if self.credentials and "*" in self.origins:
            raise ValueError("with 'credentials', origins are named one by one: '*' would let every site use them")
        if self.credentials and "null" in self.origins:
            raise ValueError("with 'credentials', 'null' is no origin to trust: every site can make a page that has it")
        return self


class JwtProvider(Strict):
    """Who signs tokens. Exactly one of `jwks_url` and `jwks`."""

    issuer: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """`iss` of its tokens, equal in every letter."""
    audiences: Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=256)]],
                         Field(min_length=1, max_length=16)]  # fmt: skip
    """One of them must be in a token's `aud`."""
    algorithms: Annotated[list[Algorithm], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: ["RS256", "ES256"]
    )
    """Those with public keys only: a gateway that could sign tokens would be a second issuer."""
    jwks_url: KeysUrl | None = None
    """Where its key set is fetched, again and again."""
    jwks: Annotated[str, StringConstraints(max_length=65_536)] | None = None
    """The key set itself (RFC 7517, section 5), as JSON text."""
    leeway_s: Annotated[int, Field(ge=0, le=300)] = 30
    """By how much the provider's clock may differ from the gateway's."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks is None):
            raise ValueError("give exactly one of 'jwks_url' and 'jwks'")
        if self.jwks is not None:
            # Loads the cryptography, which no other document needs.
            from quorate_gateway.policies.key_sets import check_inline_keys  # noqa: PLC0415

            check_inline_keys(self.jwks, self.algorithms)
        return self


class ApiKey(Strict):
    """One key. The document has its digest; the key itself is known to its owner alone. `quorate keys new` makes one of
    256 random bits, of which a plain digest tells nothing."""

    id: KeyId
    """In limits, logs and what the service is told."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the key, in hexadecimal."""
    enabled: bool = True
    expires: Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_check_moment)] | None = None
    """Not valid from then on: `2027-01-31T00:00:00Z`. Never, when left out."""

    @property
    def expires_at_s(self) -> float:
        """In seconds since the Unix epoch; infinite when it never does."""
        return math.inf if self.expires is None else self.expires.timestamp()


class ApiKeysDocument(Strict):
    """The document `api-keys.yaml` of the group `gateway`."""

    keys: Annotated[list[ApiKey], Field(max_length=KEYS_MAX)]
