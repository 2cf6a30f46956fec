"""Token providers for tests: real keys, made once a run, what they sign, and what somebody forges without them."""

import functools
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms
from quorate_gateway.documents.access import JwtProvider
from support.gateway_upstream import Exchange

ISSUER = "https://id.example"
AUDIENCE = "shop"
NOW_S = 1_800_000_000.0
"""When these tests take place."""

_EC_CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


def private_key(algorithm: str = "RS256", name: str = "one") -> Any:
    """A key for `algorithm`; another one for another `name`."""
    return _private_key(algorithm, name)


@functools.cache
def _private_key(algorithm: str, name: str) -> Any:
    if algorithm in _EC_CURVES:
        return ec.generate_private_key(_EC_CURVES[algorithm]())
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65_537, 2_048)


def public_jwk(algorithm: str = "RS256", name: str = "one", **members: Any) -> dict[str, Any]:
    """The JWK of that key's public half, whose `kid` is its name. A member given as None is left out."""
    jwk: dict[str, Any] = get_default_algorithms()[algorithm].to_jwk(private_key(algorithm, name).public_key(), True)
    jwk.pop("key_ops", None)
    return {key: value for key, value in {**jwk, "kid": name, **members}.items() if value is not None}


def jwks(*members: Mapping[str, Any]) -> str:
    return json.dumps({"keys": list(members) or [public_jwk()]})


def provider(keys: str | None = None, **changes: Any) -> JwtProvider:
    source = {} if "jwks_url" in changes else {"jwks": keys or jwks()}
    return JwtProvider(**{"issuer": ISSUER, "audiences": [AUDIENCE], **source, **changes})


def claims(now_s: float = NOW_S, **changes: Any) -> dict[str, Any]:
    """Those of a valid token; one given as None is left out."""
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now_s + 300, "nbf": now_s - 5, **changes}
    return {key: value for key, value in whole.items() if value is not None}


def signed(
    payload: Mapping[str, Any] | None = None,
    algorithm: str = "RS256",
    name: str = "one",
    header: Mapping[str, Any] | None = None,
) -> bytes:
    """A token that the provider's key has signed, by the library."""
    headers = {"kid": name, **(header or {})}
    headers = {key: value for key, value in headers.items() if value is not None}
    return jwt.encode(
        dict(payload or claims()), private_key(algorithm, name), algorithm, headers=headers
    ).encode()  # fmt: skip


def segment(value: Mapping[str, Any] | Sequence[Any] | bytes) -> bytes:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(content).rstrip(b"=")


def signed_raw(header: Mapping[str, Any] | bytes, payload: Mapping[str, Any] | bytes, name: str = "one") -> bytes:
    """A token of any header and payload, with an RS256 signature over them that is right."""
    signing_input = segment(header) + b"." + segment(payload)
    return signing_input + b"." + segment(get_default_algorithms()["RS256"].sign(signing_input, private_key(name=name)))


class KeyServer:
    """The handler of an `Upstream` that serves a key set, and says how often."""

    def __init__(self, keys: str | bytes) -> None:
        self.content = keys
        self.status = "200 OK"
        self.fields = b"content-type: application/jwk-set+json\r\n"

    async def __call__(self, exchange: Exchange) -> None:
        content = self.content if isinstance(self.content, bytes) else self.content.encode()
        await exchange.reply(content, self.status, self.fields)
