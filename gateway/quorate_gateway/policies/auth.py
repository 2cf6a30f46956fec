"""Who calls, proved by an API key, a token, or both: 401 for who is not known, 403 for who is not allowed here.

Whatever a request presents must be valid, also where the other credential would be enough: a client that sends one
that has expired hears of it at once, and not on the day when the other one expires too. What was proved stands in the
`Caller`, for limits and for the service.

Challenges are those of RFC 9110, section 11.6.1, and RFC 6750, section 3: nothing but the scheme for who presented
nothing, and the error for who did. API keys have no registered scheme, so the challenge is named `ApiKey`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quorate_core.errors import Retry

from quorate_gateway.documents.access import ApiKeyAuth, JwtAuth, RouteAuth
from quorate_gateway.policies.api_keys import ApiKeys, KnownKey
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.jwt_tokens import JwtVerifier, KeysUnavailable, Token, TokenRefused
from quorate_gateway.proxy.framing import RequestFields
from quorate_gateway.proxy.refusals import Refusal

if TYPE_CHECKING:
    from quorate_gateway.matching import CompileContext
    from quorate_gateway.policies.admission import Authenticate

UNAUTHENTICATED = "unauthenticated"
FORBIDDEN = "forbidden"
UNAVAILABLE = "auth-unavailable"
AMBIGUOUS = "ambiguous-credentials"
REALM = "quorate"
BEARER = f'Bearer realm="{REALM}"'

_AUTHORIZATION = re.compile(rb"\r\n(?i:authorization):[ \t]*([^\r]*)")
_BEARER = re.compile(rb"(?i:bearer)(?: +([A-Za-z0-9._~+/=-]*))?")
_SCOPES = frozenset({"scope", "scp"})
"""Claims whose text is a list of words (RFC 8693, section 4.2). In others, such as a name that people choose for
themselves, a word means nothing."""

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""RFC 6749, section 3.3."""

KeyOf = Callable[[RequestFields, float], "KnownKey | Refusal | None"]
TokenOf = Callable[[RequestFields, float], "Token | Refusal | None"]
"""None when the request presents none."""


def compile_auth(auth: RouteAuth | None, context: "CompileContext") -> "Authenticate | None":
    """What asks for the credentials of a route; None when it wants none. `context` has the keys and the verifiers.
    Raises KeyError when it has no verifier for the route's provider."""
    if auth is None:
        return None
    find_key = None if auth.api_key is None else _compile_api_key(auth.api_key, context.api_keys)
    find_token = None if auth.jwt is None else _compile_jwt(auth.jwt, context.tokens[auth.jwt.provider])
    wants_both = auth.require == "all" and find_key is not None and find_token is not None
    missing = _Missing(auth)

    def authenticate(fields: RequestFields, caller: Caller, wall_s: float) -> Caller | Refusal:
        key = None if find_key is None else find_key(fields, wall_s)
        if isinstance(key, Refusal):
            return key
        token = None if find_token is None else find_token(fields, wall_s)
        if isinstance(token, Refusal):
            return token
        if (key is None and token is None) or (wants_both and (key is None or token is None)):
            return missing.refusal(key, token)
        if token is None:
            return Caller(caller.client_key, b"" if key is None else key.id)
        return Caller(caller.client_key, b"" if key is None else key.id, token.claims, token.subject)

    return authenticate


def _compile_api_key(auth: ApiKeyAuth, api_keys: ApiKeys) -> KeyOf:
    find = re.compile(rb"\r\n(?i:%b):[ \t]*([^\r]*)" % re.escape(auth.header.encode("ascii"))).findall
    allowed = None if auth.keys is None else frozenset(key.encode("ascii") for key in auth.keys)
    challenge = _key_challenge(auth)

    def key_of(fields: RequestFields, wall_s: float) -> KnownKey | Refusal | None:
        presented: list[bytes] = find(fields.block)
        if not presented:
            return None
        if len(presented) > 1:
            return _ambiguous(f"{auth.header} came more than once", challenge)
        if not api_keys.is_known:
            return _unavailable("the API keys are not known yet")
        key = api_keys.find(presented[0].rstrip(b" \t"))
        if key is None:
            return _unauthenticated("the API key is not known", challenge)
        if not key.enabled:
            return _unauthenticated("the API key is not enabled", challenge)
        if wall_s >= key.expires_at_s:
            return _unauthenticated("the API key has expired", challenge)
        if allowed is not None and key.id not in allowed:
            return Refusal(FORBIDDEN, 403, "the API key is not one of those that this route is for")
        return key

    return key_of


def _compile_jwt(auth: JwtAuth, verifier: JwtVerifier) -> TokenOf:
    wanted = tuple(auth.claims.items())

    def token_of(fields: RequestFields, wall_s: float) -> Token | Refusal | None:
        presented: list[bytes] = _AUTHORIZATION.findall(fields.block)
        if not presented:
            return None
        if len(presented) > 1:
            return _ambiguous("Authorization came more than once", f'{BEARER}, error="invalid_request"')
        bearer = _BEARER.fullmatch(presented[0].rstrip(b" \t"))
        if bearer is None:
            if presented[0][:6].lower() == b"bearer":
                return _invalid_token("Authorization is not of the form: Bearer, a space, a token")
            return None  # of another scheme, which is the service's affair
        try:
            token = verifier.verify(bearer[1] or b"", wall_s)
        except TokenRefused as refused:
            return _invalid_token(str(refused))
        except KeysUnavailable as unavailable:
            return _unavailable(str(unavailable))
        for name, value in wanted:
            if not has_claim(token.claims, name, value):
                return _not_allowed(name, value)
        return token

    return token_of


def has_claim(claims: Mapping[str, Any], name: str, wanted: str) -> bool:
    """Whether the claim equals `wanted`, or has it as a member, or among the words of a scope."""
    value = claims.get(name)
    if isinstance(value, list):
        return any(_as_text(member) == wanted for member in value)
    if name in _SCOPES and isinstance(value, str):
        return wanted in value.split(" ")
    return _as_text(value) == wanted


def _as_text(value: Any) -> str | None:
    """None for what has no one form as a text: fractions, objects, null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


class _Missing:
    """What a request without the credentials is told: how to come with them."""

    def __init__(self, auth: RouteAuth) -> None:
        self._key_challenge = None if auth.api_key is None else _key_challenge(auth.api_key)
        self._token_challenge = None if auth.jwt is None else BEARER
        named = [] if auth.api_key is None else [f"an API key in {auth.api_key.header}"]
        if auth.jwt is not None:
            named.append("a token in Authorization: Bearer")
        self._detail = f"this route wants {(' and ' if auth.require == 'all' else ' or ').join(named)}"

    def refusal(self, key: KnownKey | None, token: Token | None) -> Refusal:
        challenges = [self._key_challenge] if key is None else []
        challenges += [self._token_challenge] if token is None else []
        return _unauthenticated(self._detail, *(one for one in challenges if one is not None))


def _key_challenge(auth: ApiKeyAuth) -> str:
    return f'ApiKey realm="{REALM}", header="{auth.header}"'


def _unauthenticated(detail: str, *challenges: str) -> Refusal:
    return Refusal(UNAUTHENTICATED, 401, detail, fields=_challenge_fields(challenges))


def _ambiguous(detail: str, challenge: str) -> Refusal:
    """Of two credentials, the service could mean the other one (RFC 6750, section 3.1, `invalid_request`)."""
    return Refusal(AMBIGUOUS, 400, detail, fields=_challenge_fields((challenge,)))


def _invalid_token(detail: str) -> Refusal:
    """NB: `detail` stands in a quoted string, and is made of the gateway's own words alone."""
    described = detail.replace('"', "'")
    return _unauthenticated(detail, f'{BEARER}, error="invalid_token", error_description="{described}"')


def _not_allowed(name: str, value: str) -> Refusal:
    detail = f"this route wants a token whose {name!r} has {value!r}"
    challenge = f'{BEARER}, error="insufficient_scope"'
    if name in _SCOPES and _SCOPE.fullmatch(value):
        challenge += f', scope="{value}"'
    return Refusal(FORBIDDEN, 403, detail, fields=_challenge_fields((challenge,)))


def _unavailable(detail: str) -> Refusal:
    return Refusal(UNAVAILABLE, 503, detail, Retry.SAFE)


def _challenge_fields(challenges: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(("www-authenticate", challenge) for challenge in challenges)
