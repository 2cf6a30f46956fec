"""Tokens: what a provider signed for this gateway is let in, and nothing that anybody else can make."""

import json
from base64 import urlsafe_b64decode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms
from pydantic import ValidationError
from quorate_gateway.documents.access import JwtProvider
from quorate_gateway.policies import jwt_tokens
from quorate_gateway.policies.jwt_tokens import (
    TOKEN_BYTES_MAX,
    TOKENS_REMEMBERED,
    JwtVerifier,
    JwtVerifiers,
    KeysUnavailable,
    Token,
    TokenRefused,
)
from quorate_gateway.policies.key_sets import KEY_SET_BYTES_MAX, KEYS_MAX, KeySet, read_key_set
from quorate_gateway.policies.key_source import InlineKeys
from support.gateway_tokens import (
    NOW_S,
    claims,
    jwks,
    private_key,
    provider,
    public_jwk,
    segment,
    signed,
    signed_raw,
)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
HEADER = {"alg": "RS256", "kid": "one"}


def verifier(document: JwtProvider | None = None) -> JwtVerifier:
    document = document or provider()
    return JwtVerifier(document, InlineKeys(read_key_set(document.jwks or "")))


def refusal(token: bytes, document: JwtProvider | None = None, now_s: float = NOW_S) -> str:
    with pytest.raises(TokenRefused) as refused:
        verifier(document).verify(token, now_s)
    return str(refused.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_the_provider_is_valid(algorithm: str) -> None:
    key = algorithm if algorithm[:2] in ("ES", "Ed") else "RS256"
    document = provider(jwks(public_jwk(key, alg=None)), algorithms=[algorithm])
    token = jwt.encode(claims(), private_key(key), algorithm, headers={"kid": "one"}).encode()
    found = verifier(document).verify(token, NOW_S)
    assert (found.subject, found.claims["iss"]) == (b"ada", document.issuer)


def test_an_audience_may_stand_in_a_list_and_a_provider_may_have_several() -> None:
    document = provider(audiences=["admin", "shop"])
    assert verifier(document).verify(signed(claims(aud=["other", "shop"])), NOW_S)


@pytest.mark.parametrize("kind", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_a_token_may_say_that_it_is_one(kind: str | None) -> None:
    header = HEADER if kind is None else {**HEADER, "typ": kind}
    assert verifier().verify(signed_raw(header, claims()), NOW_S)


# What an attacker may try. The first of each pair names it, and the second makes it from what an attacker has: tokens
# that were valid once, the public key, and keys of his own.


def _public_pem() -> bytes:
    pem: bytes = private_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def _public_der() -> bytes:
    der: bytes = private_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def _hmac(secret: bytes, header: dict[str, Any] | None = None, algorithm: str = "HS256") -> bytes:
    """By hand: the library refuses to sign with a public key."""
    signing_input = segment({**(header or HEADER), "alg": algorithm}) + b"." + segment(claims())
    return signing_input + b"." + segment(get_default_algorithms()[algorithm].sign(signing_input, secret))


def _unsigned(algorithm: Any, signature: bytes = b"") -> bytes:
    return segment({**HEADER, "alg": algorithm}) + b"." + segment(claims()) + b"." + signature


def _own_key(header: dict[str, Any]) -> bytes:
    """Signed by a key that the token itself brings."""
    return signed_raw({**HEADER, **header}, claims(), name="attacker")


def _with_payload(payload: dict[str, Any] | bytes) -> bytes:
    """A valid token whose payload was exchanged."""
    header, _, signature = signed().split(b".")
    return b".".join((header, segment(payload), signature))


def _with_signature(signature: bytes) -> bytes:
    return signed().rpartition(b".")[0] + b"." + signature


VALID = signed()
FORGED: dict[str, bytes] = {
    "alg none": _unsigned("none"),
    "alg none with a signature": _unsigned("none", b"AAAA"),
    "alg None": _unsigned("None", b"AAAA"),
    "alg nOnE": _unsigned("nOnE", b"AAAA"),
    "alg empty": _unsigned("", b"AAAA"),
    "alg null": _unsigned(None, b"AAAA"),
    "alg a list": _unsigned(["RS256"], b"AAAA"),
    "alg in lower case": _unsigned("rs256", VALID.rpartition(b".")[2]),
    "no alg": segment({"kid": "one"}) + b"." + segment(claims()) + b".AAAA",
    "alg twice, the allowed one last": segment(b'{"alg":"none","kid":"one","alg":"RS256"}') + b"." + segment(claims())
    + b".AAAA",
    "HS256 with the public key as PEM": _hmac(_public_pem()),
    "HS256 with the public key as PEM, trimmed": _hmac(_public_pem().strip()),
    "HS256 with the public key as DER": _hmac(_public_der()),
    "HS256 with the public key as JWK": _hmac(json.dumps(public_jwk()).encode()),
    "HS256 with the modulus": _hmac(public_jwk()["n"].encode()),
    "HS256 with an empty secret": _hmac(b""),
    "HS512 with the public key as PEM": _hmac(_public_pem(), algorithm="HS512"),
    "HS256 signature that says RS256": _hmac(_public_pem()).replace(segment({**HEADER, "alg": "HS256"}),
                                                                    segment(HEADER)),
    "another key, same kid": signed(name="attacker", header={"kid": "one"}),
    "another key, its own kid": signed(name="attacker"),
    "another key, no kid": signed(name="attacker", header={"kid": None}),
    "jwk in the header": _own_key({"jwk": public_jwk(name="attacker")}),
    "jku in the header": _own_key({"jku": "https://evil.example/keys"}),
    "x5u in the header": _own_key({"x5u": "https://evil.example/cert"}),
    "x5c in the header": _own_key({"x5c": ["MIIB"]}),
    "kid that is a path": signed(header={"kid": "../../../../dev/null"}),
    "kid that is SQL": signed(header={"kid": "one' UNION SELECT 'x"}),
    "kid with a NUL": signed(header={"kid": "one\x00"}),
    "kid in other letters": signed(header={"kid": "ONE"}),
    "kid empty": signed(header={"kid": ""}),
    "kid a number": signed_raw({**HEADER, "kid": 1}, claims()),
    "kid a list": signed_raw({**HEADER, "kid": ["one"]}, claims()),
    "kid an object": signed_raw({**HEADER, "kid": {"one": 1}}, claims()),
    "kid endless": signed_raw({**HEADER, "kid": "o" * 1_000}, claims()),
    "crit": signed_raw({**HEADER, "crit": ["exp"], "exp": 1}, claims()),
    "crit with b64": signed_raw({**HEADER, "crit": ["b64"], "b64": False}, claims()),
    "crit empty": signed_raw({**HEADER, "crit": []}, claims()),
    "crit that is no list": signed_raw({**HEADER, "crit": "b64"}, claims()),
    "b64 without crit": signed_raw({**HEADER, "b64": False}, claims()),
    "payload exchanged": _with_payload(claims(sub="root")),
    "signature of another token": _with_signature(signed(claims(sub="eve")).rpartition(b".")[2]),
    "signature cut": VALID[:-8],
    "signature doubled": VALID + VALID.rpartition(b".")[2],
    "signature of zeros": _with_signature(segment(bytes(256))),
    "signature of ones": _with_signature(segment(b"\xff" * 256)),
    "no signature": VALID.rpartition(b".")[0] + b".",
    "two segments": VALID.rpartition(b".")[0],
    "four segments": VALID + b".AAAA",
    "an encrypted token": segment({"alg": "RSA-OAEP", "enc": "A256GCM"}) + b".AA" * 4,
    "empty": b"",
    "dots": b"..",
    "one word": b"token",
    "header not base64url": b"+/=" + VALID,
    "header of one character": b"e." + VALID.partition(b".")[2],
    "header not JSON": segment(b"hello") + b".AAAA.AAAA",
    "header no object": segment(["RS256"]) + b".AAAA.AAAA",
    "header not UTF-8": segment(b'{"alg":"\xff"}') + b".AAAA.AAAA",
    "header nested without end": segment(b'{"a":' * 500) + b".AAAA.AAAA",
    "header of brackets": segment(b"[" * 3_000) + b".AAAA.AAAA",
    "header too long": signed_raw({**HEADER, "x5c": ["M" * 5_000]}, claims()),
    "a character that base64 readers skip": VALID[:-4] + b"!" + VALID[-4:],
    "a space inside": VALID[:30] + b" " + VALID[30:],
    "padding": VALID + b"==",
    "a control character": VALID + b"\x00",
    "too long": signed(claims(padding="x" * TOKEN_BYTES_MAX)),
    "payload not JSON": signed_raw(HEADER, b"hello"),
    "payload no object": signed_raw(HEADER, b'["ada"]'),
    "payload nested without end": signed_raw(HEADER, b'{"a":' * 800),
    "payload that is a token": signed_raw({**HEADER, "cty": "JWT"}, VALID),
    "half a character in a claim": signed_raw(HEADER, json.dumps(claims(name="\ud800")).encode()),
    "expired": signed(claims(exp=NOW_S - 31)),
    "not valid yet": signed(claims(nbf=NOW_S + 31)),
    "no exp": signed_raw(HEADER, claims(exp=None)),
    "exp a text": signed_raw(HEADER, claims(exp="9999999999")),
    "exp true": signed_raw(HEADER, claims(exp=True)),
    "exp null": signed_raw(HEADER, {**claims(), "exp": None}),
    "exp not a number": signed_raw(HEADER, claims(exp=float("nan"))),
    "exp infinite": signed_raw(HEADER, claims(exp=float("inf"))),
    "exp of a thousand digits": signed_raw(HEADER, claims(exp=10**1_000)),
    "nbf a text": signed_raw(HEADER, claims(nbf="0")),
    "another issuer": signed(claims(iss="https://evil.example")),
    "the issuer and more": signed(claims(iss="https://id.example/")),
    "the issuer in a list": signed_raw(HEADER, claims(iss=["https://id.example"])),
    "no issuer": signed(claims(iss=None)),
    "another audience": signed(claims(aud="bank")),
    "a part of the audience": signed(claims(aud="sho")),
    "other audiences": signed(claims(aud=["bank", "shops"])),
    "no audience": signed(claims(aud=None)),
    "audience an object": signed_raw(HEADER, claims(aud={"shop": True})),
    "subject a number": signed_raw(HEADER, claims(sub=7)),
    "subject endless": signed(claims(sub="x" * 600)),
    "a token about a logout": signed_raw({**HEADER, "typ": "logout+jwt"}, claims()),
    "typ a number": signed_raw({**HEADER, "typ": 1}, claims()),
    "RS512 where RS256 is allowed": jwt.encode(claims(), private_key(), "RS512", headers={"kid": "one"}).encode(),
    "PS256 where RS256 is allowed": jwt.encode(claims(), private_key(), "PS256", headers={"kid": "one"}).encode(),
    "an EC key's token by an RSA key's name": signed(algorithm="ES256"),
}  # fmt: skip


REASONS = {
    "alg": "algorithm", "alg none": "", "alg twice": "signature", "HS": "algorithm", "HS256 signature": "signature",
    "another key, same kid": "signature", "jwk": "signature", "jku": "signature", "x5": "signature", "kid": "",
    "crit": "extension", "b64": "extension", "signature": "", "exp": "'exp'", "nbf": "'nbf'", "expired": "expired",
    "not valid yet": "not valid yet", "no exp": "when it expires", "the issuer": "issuer", "another issuer": "issuer",
    "no issuer": "issuer", "audience": "audience", "another audience": "audience", "no audience": "audience",
    "subject": "'sub'", "a token about": "'typ'", "half a character": "no claims", "payload that": "no claims",
    "header nested": "header", "header of b": "header", "too long": "three segments",
    "an encrypted token": "three segments", "RS512": "algorithm", "PS256": "algorithm",
}  # fmt: skip
"""By how the attack's name begins, the longest counts: what it is refused for. One that is refused for a slip in making
it would show nothing."""


@pytest.mark.parametrize("attack", FORGED)
def test_what_the_provider_did_not_sign_for_this_gateway_and_this_moment_is_refused(attack: str) -> None:
    assert verifier().verify(VALID, NOW_S)
    told_as = max((beginning for beginning in REASONS if attack.startswith(beginning)), key=len, default="")
    assert REASONS.get(told_as, "") in refusal(FORGED[attack])


def test_a_refusal_repeats_nothing_that_the_caller_chose() -> None:
    token = signed_raw({**HEADER, "kid": "<script>"}, claims(iss="<script>", sub="<script>"))
    assert all("script" not in refusal(one) for one in (token, signed(claims(iss="<script>")), *FORGED.values()))


def test_an_ecdsa_signature_of_zeros_signs_nothing() -> None:
    """CVE-2022-21449, in another language's library."""
    document = provider(jwks(public_jwk("ES256")))
    token = signed(algorithm="ES256")
    assert verifier(document).verify(token, NOW_S)
    assert refusal(token.rpartition(b".")[0] + b"." + segment(bytes(64)), document)


@given(st.binary(max_size=300))
def test_no_bytes_whatever_do_anything_but_be_refused(token: bytes) -> None:
    assert refusal(token)


_VERIFIER = verifier()


@given(st.data())
def test_no_changed_byte_of_a_valid_token_is_overlooked(data: st.DataObject) -> None:
    """Except in the bits that base64 has too many of, which the library does not overlook either."""
    at = data.draw(st.integers(0, len(VALID) - 1))
    changed = bytes([data.draw(st.integers(0, 255).filter(lambda octet: octet != VALID[at]))])
    with pytest.raises(TokenRefused):
        _VERIFIER.verify(VALID[:at] + changed + VALID[at + 1 :], NOW_S)


# Keys.


def test_of_several_keys_the_named_one_verifies_and_no_other_is_tried() -> None:
    document = provider(jwks(public_jwk(), public_jwk(name="two")))
    assert verifier(document).verify(signed(name="two"), NOW_S)
    assert refusal(signed(name="two", header={"kid": "one"}), document)


def test_a_token_without_kid_is_for_the_only_key_there_is() -> None:
    unnamed = signed(header={"kid": None})
    assert verifier().verify(unnamed, NOW_S)
    with_other_kind = provider(jwks(public_jwk(), public_jwk("ES256", "two")))
    assert verifier(with_other_kind).verify(unnamed, NOW_S)
    assert refusal(unnamed, provider(jwks(public_jwk(), public_jwk(name="two"))))


def test_a_key_is_used_for_the_algorithm_that_it_says() -> None:
    document = provider(jwks(public_jwk(alg="RS512")), algorithms=["RS256", "RS512"])
    assert refusal(VALID, document)
    assert verifier(document).verify(
        jwt.encode(claims(), private_key(), "RS512", headers={"kid": "one"}).encode(), NOW_S
    )


def _small_key() -> dict[str, Any]:
    key = rsa.generate_private_key(65_537, 1_024).public_key()  # noqa: S505 - that is the point
    return {**get_default_algorithms()["RS256"].to_jwk(key, True), "kid": "small"}


UNUSABLE: dict[str, dict[str, Any]] = {
    "a secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
    "a private key": {**get_default_algorithms()["RS256"].to_jwk(private_key(), True), "kid": "x"},
    "for encryption": public_jwk(use="enc"),
    "for signing": public_jwk(key_ops=["sign"]),
    "operations no list": public_jwk(key_ops="verify"),
    "too small": _small_key(),
    "of an unknown kind": {"kty": "AKP", "kid": "x"},
    "without kind": {"kid": "x"},
    "of an unknown curve": {**public_jwk("ES256"), "crv": "P-224"},
    "on another curve": {**public_jwk("ES256"), "crv": "P-384"},
    "not on its curve": {**public_jwk("ES256"), "y": public_jwk("ES256")["x"]},
    "for an algorithm of another kind": public_jwk(alg="ES256"),
    "for a secret's algorithm": public_jwk(alg="HS256"),
    "without modulus": public_jwk(n=None),
    "with a modulus that is no text": public_jwk(n=7),
    "with an exponent of one": public_jwk(e="AQ"),
    "of secp256k1": {**public_jwk("ES256"), "crv": "secp256k1"},
    "kid a number": public_jwk(kid=7),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_key_that_must_not_verify_is_left_out_and_the_others_serve(kind: str) -> None:
    keys = read_key_set(jwks(UNUSABLE[kind], public_jwk(name="good")))
    assert (len(keys), len(keys.left_out)) == (1, 1)
    assert keys.left_out[0].startswith("key 0: ")
    assert keys.find("good", "RS256") is not None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", '{"keys": {}}', '{"keys": ["x"]}', "[" * 100_000, jwks(*[public_jwk()] * (KEYS_MAX + 1)),
     '{"keys": []}' + " " * KEY_SET_BYTES_MAX],
    ids=["nothing", "list", "no keys", "null", "object", "text", "nested", "many", "large"],
)  # fmt: skip
def test_what_is_no_key_set_is_refused_whole(content: str) -> None:
    with pytest.raises(ValueError, match="key set"):
        read_key_set(content)


def test_key_sets_are_the_same_in_any_order() -> None:
    one, two = public_jwk(), public_jwk(name="two")
    assert read_key_set(jwks(one, two)) == read_key_set(jwks(two, one))
    assert read_key_set(jwks(one, two)) != read_key_set(jwks(one))


@pytest.mark.parametrize(
    ("keys", "message"),
    [("x", "is JSON"), ('{"keys": []}', "no key"), (jwks(UNUSABLE["a private key"]), "private"),
     (jwks(public_jwk("ES384")), "its keys are for ES384")],
    ids=["no JSON", "none", "private", "other algorithm"],
)  # fmt: skip
def test_an_inline_key_set_that_is_of_no_use_is_refused_with_the_document(keys: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        provider(keys)


# Times, and what is remembered.


@pytest.mark.parametrize(("leeway_s", "late_s"), [(0, 0), (30, 30)])
def test_a_token_is_valid_from_nbf_to_exp_and_a_leeway_more(leeway_s: int, late_s: int) -> None:
    checked = verifier(provider(leeway_s=leeway_s))
    token = signed(claims(nbf=NOW_S, exp=NOW_S + 100))
    with pytest.raises(TokenRefused, match="not valid yet"):
        checked.verify(token, NOW_S - late_s - 0.001)
    assert checked.verify(token, NOW_S - late_s)
    assert checked.verify(token, NOW_S + 100 + late_s - 0.001)
    with pytest.raises(TokenRefused, match="expired"):
        checked.verify(token, NOW_S + 100 + late_s)


def test_a_token_is_verified_once_and_expires_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    checked, verified = verifier(), []
    verify = jwt_tokens._verify_signature
    monkeypatch.setattr(jwt_tokens, "_verify_signature", lambda *given: verified.append(1) or verify(*given))
    first = checked.verify(VALID, NOW_S)
    assert checked.verify(VALID, NOW_S + 300) is first
    assert len(verified) == 1
    with pytest.raises(TokenRefused, match="expired"):
        checked.verify(VALID, NOW_S + 330)
    assert checked.remembered == 0


class _Keys:
    """A source whose keys a test changes."""

    def __init__(self, keys: KeySet | None) -> None:
        self.keys = keys
        self.may_have_newer = False
        self.asked = 0

    def want_newer(self) -> bool:
        self.asked += 1
        return self.may_have_newer


def test_a_key_that_is_withdrawn_takes_its_tokens_along() -> None:
    source = _Keys(read_key_set(jwks(public_jwk(), public_jwk(name="two"))))
    checked = JwtVerifier(provider(), source)
    assert checked.verify(VALID, NOW_S)
    source.keys = read_key_set(jwks(public_jwk(name="two")))
    with pytest.raises(TokenRefused, match="names no key"):
        checked.verify(VALID, NOW_S)


def test_what_is_remembered_is_bounded_and_forgets_who_was_away_longest() -> None:
    checked = verifier(provider(jwks(public_jwk("EdDSA")), algorithms=["EdDSA"]))
    first, second = (signed(claims(sub=name), "EdDSA") for name in ("first", "second"))
    checked.verify(first, NOW_S)
    checked.verify(second, NOW_S)
    for number in range(TOKENS_REMEMBERED - 2):
        checked.verify(signed(claims(sub=str(number)), "EdDSA"), NOW_S)
        checked.verify(first, NOW_S)
    kept = checked.verify(first, NOW_S)
    checked.verify(signed(claims(sub="one more"), "EdDSA"), NOW_S)
    assert checked.remembered == TOKENS_REMEMBERED
    assert checked.verify(first, NOW_S) is kept


def test_no_forged_token_is_remembered() -> None:
    checked = verifier()
    for token in FORGED.values():
        with pytest.raises(TokenRefused):
            checked.verify(token, NOW_S)
    assert checked.remembered <= 1, "of them, the one that is not valid yet is its provider's"


def test_without_keys_nothing_is_said_about_a_token() -> None:
    with pytest.raises(KeysUnavailable):
        JwtVerifier(provider(), _Keys(None)).verify(VALID, NOW_S)


def test_an_unknown_key_is_asked_for_and_the_token_left_open_meanwhile() -> None:
    source = _Keys(read_key_set(jwks()))
    checked = JwtVerifier(provider(), source)
    source.may_have_newer = True
    with pytest.raises(KeysUnavailable):
        checked.verify(signed(name="two"), NOW_S)
    source.may_have_newer = False
    with pytest.raises(TokenRefused):
        checked.verify(signed(name="two"), NOW_S)
    assert source.asked == 2


@pytest.mark.parametrize("attack", ["alg none", "another key, same kid", "signature cut", "expired", "kid endless",
                                    "an EC key's token by an RSA key's name"])  # fmt: skip
def test_only_an_unknown_key_is_asked_for(attack: str) -> None:
    source = _Keys(read_key_set(jwks()))
    with pytest.raises(TokenRefused):
        JwtVerifier(provider(), source).verify(FORGED[attack], NOW_S)
    assert source.asked == 0


def test_what_a_token_says_cannot_be_changed_by_who_reads_it() -> None:
    found: Token = verifier().verify(VALID, NOW_S)
    with pytest.raises(TypeError):
        found.claims["sub"] = "root"  # type: ignore[index]  # that is the point


def test_an_unchanged_provider_keeps_what_is_remembered_over_snapshots() -> None:
    verifiers = JwtVerifiers()
    verifiers.replace({"staff": provider(), "partners": provider(leeway_s=5)})
    kept = verifiers["staff"]
    kept.verify(VALID, NOW_S)
    verifiers.replace({"staff": provider(), "partners": provider(leeway_s=6)})
    assert verifiers["staff"] is kept
    verifiers.replace({"staff": provider(issuer="https://other.example")})
    assert verifiers["staff"] is not kept
    assert set(verifiers.verifiers) == {"staff"}


@pytest.mark.parametrize(
    "url",
    ["https://", "https:///keys", "https://:8443/keys", "https://id.example:99999/", "https://id.example:0/",
     "https://user:password@id.example/", "https://id.example/#keys", "https://[::1", "ftp://id.example/", "id.example",
     "https://id.example/a b", "https://id.example:x/"],
)  # fmt: skip
def test_an_address_that_nobody_can_ask_is_refused_with_the_document(url: str) -> None:
    with pytest.raises(ValidationError):
        provider(jwks_url=url)


def test_a_provider_has_one_source_of_keys() -> None:
    with pytest.raises(ValidationError, match="exactly one of"):
        JwtProvider(issuer="a", audiences=["b"])
    with pytest.raises(ValidationError, match="exactly one of"):
        JwtProvider(issuer="a", audiences=["b"], jwks=jwks(), jwks_url="https://id.example/keys")


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES256K", "rs256", ""])
def test_no_document_can_name_an_algorithm_with_a_shared_secret_or_none(algorithm: str) -> None:
    with pytest.raises(ValidationError):
        provider(algorithms=[algorithm])


def test_the_test_tokens_are_what_they_say() -> None:
    """A forged token that was refused for a slip in making it would show nothing."""
    header = json.loads(urlsafe_b64decode(FORGED["jwk in the header"].partition(b".")[0] + b"=="))
    attackers = jwt.PyJWK(header["jwk"], "RS256")
    assert jwt.PyJWS().decode(FORGED["jwk in the header"], attackers, ["RS256"])
    by_secret = jwt.PyJWS().decode(
        FORGED["HS256 with the modulus"], public_jwk()["n"].encode(), ["HS256"]
    )  # fmt: skip
    assert json.loads(by_secret)["sub"] == "ada"
