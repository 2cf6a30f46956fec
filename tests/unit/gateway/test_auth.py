"""Who is let in: an API key, a token, either, or both; and how everybody else is told what is missing."""

import hashlib
import re
from typing import Any

import pytest
from pydantic import ValidationError
from quorate_core.errors import Retry
from quorate_gateway.documents.access import KEYS_MAX, ApiKey, ApiKeyAuth, ApiKeysDocument, JwtAuth, RouteAuth
from quorate_gateway.documents.api_keys_document import parse_api_keys
from quorate_gateway.matching import CompileContext
from quorate_gateway.policies.admission import identity_fields
from quorate_gateway.policies.api_keys import KEY_BYTES_MAX
from quorate_gateway.policies.auth import AMBIGUOUS, FORBIDDEN, UNAUTHENTICATED, UNAVAILABLE, compile_auth, has_claim
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.jwt_tokens import SUBJECT_BYTES_MAX, TOKEN_BYTES_MAX, TOKENS_REMEMBERED
from quorate_gateway.policies.key_sets import KEY_SET_BYTES_MAX
from quorate_gateway.proxy.framing import read_request_fields
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.routes import parse_routes
from support.gateway_tokens import NOW_S, claims, provider, signed
from support.repository import ROOT

KEY = RouteAuth(api_key=ApiKeyAuth())
TOKEN = RouteAuth(jwt=JwtAuth(provider="staff"))
EITHER = RouteAuth(api_key=ApiKeyAuth(), jwt=JwtAuth(provider="staff"))
BOTH = RouteAuth(api_key=ApiKeyAuth(), jwt=JwtAuth(provider="staff"), require="all")
CLIENT = Caller(b"192.0.2.1")

WITH_KEY = "X-API-Key: web-key\r\n"
WITH_TOKEN = f"Authorization: Bearer {signed().decode()}\r\n"


def _api_key(key_id: str, **changes: Any) -> ApiKey:
    return ApiKey(id=key_id, sha256=hashlib.sha256(f"{key_id}-key".encode()).hexdigest(), **changes)


def context() -> CompileContext:
    made = CompileContext()
    made.tokens.replace({"staff": provider()})
    made.api_keys.replace(
        ApiKeysDocument(
            keys=[_api_key("web"), _api_key("old", expires="2027-01-15T08:00:00Z"), _api_key("off", enabled=False)]
        )
    )
    return made


CONTEXT = context()
EXPIRY_S = 1_800_000_000.0
assert EXPIRY_S == NOW_S


def ask(auth: RouteAuth, fields: str, now_s: float = NOW_S, within: CompileContext = CONTEXT) -> Caller | Refusal:
    authenticate = compile_auth(auth, within)
    assert authenticate is not None
    block = ("\r\nHost: shop\r\n" + fields).removesuffix("\r\n").encode("latin-1")
    return authenticate(read_request_fields(block), CLIENT, now_s)


def refused(auth: RouteAuth, fields: str, now_s: float = NOW_S) -> Refusal:
    found = ask(auth, fields, now_s)
    assert isinstance(found, Refusal)
    return found


def challenges(refusal: Refusal) -> list[str]:
    assert {name for name, _ in refusal.fields} <= {"www-authenticate"}
    return [value for _, value in refusal.fields]


KEY_CHALLENGE = 'ApiKey realm="quorate", header="x-api-key"'
TOKEN_CHALLENGE = 'Bearer realm="quorate"'


def test_a_route_that_asks_for_nothing_costs_nothing() -> None:
    assert compile_auth(None, CONTEXT) is None


@pytest.mark.parametrize("fields", [WITH_KEY, "x-api-key: web-key\r\n", "X-Api-Key:web-key \t\r\n"])
def test_a_key_says_who_calls(fields: str) -> None:
    assert ask(KEY, fields) == Caller(CLIENT.client_key, b"web")


def test_a_key_comes_in_the_field_that_the_route_names() -> None:
    auth = RouteAuth(api_key=ApiKeyAuth(header="X-Partner"))
    assert ask(auth, "x-partner: web-key\r\n") == Caller(CLIENT.client_key, b"web")
    assert refused(auth, WITH_KEY).status == 401


def test_a_token_says_who_calls() -> None:
    found = ask(TOKEN, WITH_TOKEN)
    assert isinstance(found, Caller)
    assert (found.client_key, found.subject, found.api_key_id) == (CLIENT.client_key, b"ada", b"")
    assert found.claims["aud"] == "shop"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_scheme_is_known_in_any_letters(scheme: str) -> None:
    assert isinstance(ask(TOKEN, WITH_TOKEN.replace("Bearer", scheme)), Caller)


@pytest.mark.parametrize(
    ("auth", "fields", "said"),
    [
        (KEY, "X-API-Key: nobody\r\n", "not known"),
        (KEY, "X-API-Key:\r\n", "not known"),
        (KEY, "X-API-Key: off-key\r\n", "not enabled"),
        (KEY, "X-API-Key: old-key\r\n", "has expired"),
        (KEY, "Authorization: Bearer web-key\r\n", "wants an API key in x-api-key"),
        (TOKEN, "X-API-Key: web-key\r\n", "wants a token in Authorization"),
        (TOKEN, "Authorization: Basic YTpi\r\n", "wants a token"),
        (TOKEN, "Authorization: Bearer\r\n", "three segments"),
        (TOKEN, "Authorization: Bearer \r\n", "three segments"),
        (TOKEN, "Authorization: Bearer a b\r\n", "of the form"),
        (TOKEN, "Authorization: Bearer,x\r\n", "of the form"),
        (TOKEN, "Authorization: Bearer a.b.c\r\n", "header is no JSON"),
        (EITHER, "", "an API key in x-api-key or a token"),
        (BOTH, "", "an API key in x-api-key and a token"),
        (BOTH, WITH_KEY, "an API key in x-api-key and a token"),
        (BOTH, WITH_TOKEN, "an API key in x-api-key and a token"),
    ],
)
def test_who_does_not_prove_himself_gets_401(auth: RouteAuth, fields: str, said: str) -> None:
    refusal = refused(auth, fields)
    assert (refusal.rule, refusal.status, refusal.retry) == ("unauthenticated", 401, Retry.NEVER)
    assert said in refusal.detail
    assert challenges(refusal), "RFC 9110, section 15.5.2"


@pytest.mark.parametrize("fields", [WITH_KEY * 2, "X-API-Key: web-key\r\nx-api-key: nobody\r\n"])
def test_two_keys_are_none(fields: str) -> None:
    refusal = refused(KEY, fields)
    assert (refusal.rule, refusal.status) == ("ambiguous-credentials", 400)


def test_two_tokens_are_none() -> None:
    for fields in (WITH_TOKEN * 2, WITH_TOKEN + "authorization: Basic YTpi\r\n"):
        refusal = refused(TOKEN, fields)
        assert (refusal.status, challenges(refusal)) == (400, [f'{TOKEN_CHALLENGE}, error="invalid_request"'])


def test_a_key_is_valid_until_it_expires() -> None:
    fields = "X-API-Key: old-key\r\n"
    assert isinstance(ask(KEY, fields, EXPIRY_S - 0.001), Caller)
    assert isinstance(ask(KEY, fields, EXPIRY_S), Refusal)


def test_either_will_do_and_both_are_told() -> None:
    assert ask(EITHER, WITH_KEY) == Caller(CLIENT.client_key, b"web")
    by_token, by_both = ask(EITHER, WITH_TOKEN), ask(EITHER, WITH_KEY + WITH_TOKEN)
    assert isinstance(by_token, Caller)
    assert isinstance(by_both, Caller)
    assert (by_token.api_key_id, by_token.subject) == (b"", b"ada")
    assert (by_both.api_key_id, by_both.subject) == (b"web", b"ada")
    assert ask(BOTH, WITH_KEY + WITH_TOKEN) == by_both


@pytest.mark.parametrize(
    "fields",
    ["X-API-Key: nobody\r\n" + WITH_TOKEN, WITH_KEY + f"Authorization: Bearer {signed(name='attacker').decode()}\r\n"],
)
def test_what_is_presented_must_be_valid_also_beside_what_is(fields: str) -> None:
    assert refused(EITHER, fields).status == 401


def test_who_presents_nothing_is_told_the_schemes_and_no_error() -> None:
    """RFC 6750, section 3.1."""
    assert challenges(refused(KEY, "")) == [KEY_CHALLENGE]
    assert challenges(refused(TOKEN, "")) == [TOKEN_CHALLENGE]
    assert challenges(refused(EITHER, "")) == [KEY_CHALLENGE, TOKEN_CHALLENGE]
    assert challenges(refused(BOTH, WITH_KEY)) == [TOKEN_CHALLENGE]
    assert challenges(refused(BOTH, WITH_TOKEN)) == [KEY_CHALLENGE]


def test_a_token_that_is_not_valid_is_told_why() -> None:
    (challenge,) = challenges(refused(TOKEN, WITH_TOKEN, NOW_S + 1_000))
    assert challenge == f'{TOKEN_CHALLENGE}, error="invalid_token", error_description="the token has expired"'


def test_a_key_that_the_route_is_not_for_gets_403() -> None:
    auth = RouteAuth(api_key=ApiKeyAuth(keys=["partner"]))
    refusal = refused(auth, WITH_KEY)
    assert (refusal.rule, refusal.status) == ("forbidden", 403)
    assert refused(auth, "X-API-Key: nobody\r\n").status == 401, "only who is known is told that others are allowed"
    assert ask(RouteAuth(api_key=ApiKeyAuth(keys=["partner", "web"])), WITH_KEY) == Caller(CLIENT.client_key, b"web")


def test_a_claim_that_is_not_there_gets_403() -> None:
    auth = RouteAuth(jwt=JwtAuth(provider="staff", claims={"scope": "orders.read", "team": "a"}))
    allowed = signed(claims(scope="orders.write orders.read", team="a"))
    assert isinstance(ask(auth, f"Authorization: Bearer {allowed.decode()}\r\n"), Caller)
    for given in ({"scope": "orders.read"}, {"team": "a"}, {"scope": "orders.readx", "team": "a"}, {}):
        token = signed(claims(**given))
        refusal = refused(auth, f"Authorization: Bearer {token.decode()}\r\n")
        assert (refusal.rule, refusal.status) == ("forbidden", 403)
        assert 'error="insufficient_scope"' in challenges(refusal)[0]
    assert challenges(refused(auth, WITH_TOKEN))[0].endswith('scope="orders.read"')


@pytest.mark.parametrize(
    ("value", "wanted", "has"),
    [
        ("admin", "admin", True), ("admin", "adm", False), ("Admin", "admin", False), ("admin user", "admin", False),
        (["user", "admin"], "admin", True), (["user"], "admin", False), ([], "admin", False),
        ([["admin"]], "admin", False), (["admin user"], "admin", False), ({"admin": 1}, "admin", False),
        (True, "true", True), (False, "true", False), (True, "1", False), (1, "true", False), (7, "7", True),
        ([7], "7", True), (7.0, "7", False), (None, "None", False), (None, "null", False),
    ],
)  # fmt: skip
def test_a_claim_equals_what_is_wanted_or_has_it_in_its_list(value: Any, wanted: str, has: bool) -> None:
    assert has_claim({"role": value}, "role", wanted) is has


@pytest.mark.parametrize("name", ["scope", "scp"])
def test_of_a_scope_one_word_will_do(name: str) -> None:
    assert has_claim({name: "a b c"}, name, "b")
    assert has_claim({name: ["a", "b"]}, name, "b")
    assert not has_claim({name: "ab c"}, name, "b")
    assert not has_claim({name: "a b"}, name, "a b"), "that is two words"
    assert not has_claim({}, name, "")


def test_keys_that_are_not_known_yet_leave_it_open_who_calls() -> None:
    fresh = CompileContext()
    refusal = ask(KEY, WITH_KEY, within=fresh)
    assert isinstance(refusal, Refusal)
    assert (refusal.rule, refusal.status, refusal.retry) == ("auth-unavailable", 503, Retry.SAFE)


def test_a_provider_s_keys_that_are_not_known_yet_leave_it_open_who_calls() -> None:
    fresh = CompileContext()
    fresh.tokens.replace({"staff": provider(jwks_url="http://127.0.0.1:9/keys")})
    refusal = ask(TOKEN, WITH_TOKEN, within=fresh)
    assert isinstance(refusal, Refusal)
    assert (refusal.rule, refusal.status, refusal.retry) == ("auth-unavailable", 503, Retry.SAFE)
    assert isinstance(ask(TOKEN, "", within=fresh), Refusal), "who presents nothing is refused all the same"


@pytest.mark.parametrize(
    ("subject", "told"),
    [(b"ada", b"ada"), (b"auth0|5f", b"auth0|5f"), ("zoë".encode(), b"zo%C3%AB"), (b"a b", b"a%20b"),
     (b"a\r\nx-quorate-api-key-id: root", b"a%0D%0Ax-quorate-api-key-id:%20root"), (b"100%", b"100%25")],
)  # fmt: skip
def test_whatever_a_subject_holds_it_stays_one_field(subject: bytes, told: bytes) -> None:
    assert identity_fields(Caller(b"", b"web", {}, subject)) == (
        b"\r\nx-quorate-api-key-id: web\r\nx-quorate-subject: " + told
    )


@pytest.mark.parametrize(
    "header", ["authorization", "Cookie", "host", "X-Quorate-Subject", "x-forwarded-for", "content-length"]
)
def test_a_key_comes_in_no_field_that_means_something_else(header: str) -> None:
    with pytest.raises(ValidationError, match="means something else"):
        ApiKeyAuth(header=header)


def test_an_auth_that_asks_for_nothing_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="give 'api_key', 'jwt' or both"):
        RouteAuth()


def test_the_examples_of_the_reference_are_valid() -> None:
    page = (ROOT / "docs" / "reference" / "access.md").read_text()
    routes = re.search(r"```yaml\n(jwt_providers:.*?)```", page, re.DOTALL)
    entry = re.search(r"^  (- \{id: .*\})$", page, re.MULTILINE)
    assert routes is not None
    assert entry is not None
    assert len(parse_routes(routes[1]).routes) == 2
    assert parse_api_keys("keys:\n" + entry[1].replace("5f1c…", "0" * 64)).keys[0].id == "partner-a"
    for rule in (UNAUTHENTICATED, AMBIGUOUS, FORBIDDEN, UNAVAILABLE):
        assert f"`{rule}`" in page
    for limit in (KEYS_MAX, KEY_BYTES_MAX, TOKEN_BYTES_MAX, TOKENS_REMEMBERED, SUBJECT_BYTES_MAX, KEY_SET_BYTES_MAX):
        assert str(limit) in page
