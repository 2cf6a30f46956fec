"""Key sets of token providers (JWKS, RFC 7517): which key may verify which signature.

An algorithm belongs to a key, and never to a token: each key is bound to the algorithms of its kind before any token is
looked at, so that no header can have a key used for something else (RFC 8725, section 3.1). Keys that are secret,
private, weak, or meant for something else are left out of the set; the others of the set still serve.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jwt import PyJWK, PyJWTError

KEY_SET_BYTES_MAX = 262_144
KEYS_MAX = 64
"""Of one provider. A provider that changes its keys has a few."""
KID_CHARS_MAX = 256
RSA_BITS_MIN = 2_048
"""RFC 7518, section 3.3."""
RSA_BITS_MAX = 4_096
"""Verifying by a larger one takes long enough to hold up the requests of others."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS_OF: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""By `kty` and `crv`. No `oct`: who can verify by a shared secret can sign by it too."""


class VerificationKey(NamedTuple):
    """A public key; `keys` has it once for each algorithm that it may verify."""

    kid: str | None
    keys: Mapping[str, PyJWK]


class KeySet:
    """The usable keys of one provider. Immutable; equal when the keys are."""

    __slots__ = ("_keys", "digest", "left_out")

    def __init__(self, keys: Sequence[VerificationKey], digest: bytes, left_out: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self.digest = digest
        """Of the usable keys, whatever their order."""
        self.left_out = tuple(left_out)
        """Why other keys of the set are not used."""

    def __len__(self) -> int:
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySet) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def has(self, kid: str | None) -> bool:
        """Whether a key is called so; of a token that names none, whether there is any."""
        return bool(self._keys) if kid is None else any(key.kid == kid for key in self._keys)

    def find(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The key of that name, when it may verify `algorithm`. Without a name, the only key that may: several are not
        tried one after the other."""
        found = [key.keys[algorithm] for key in self._keys if algorithm in key.keys and (kid is None or key.kid == kid)]
        return found[0] if len(found) == 1 else None

    def algorithms(self) -> frozenset[str]:
        return frozenset(algorithm for key in self._keys for algorithm in key.keys)


def read_key_set(text: str | bytes) -> KeySet:
    """The usable keys of a JWK Set (RFC 7517, section 5). Raises ValueError for what is no JWK Set at all."""
    if len(text) > KEY_SET_BYTES_MAX:
        raise ValueError(f"a key set may have {KEY_SET_BYTES_MAX} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError('a key set is JSON: {"keys": […]}') from error
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise ValueError("a key set is an object whose 'keys' is a list of objects (RFC 7517, section 5)")
    if len(members) > KEYS_MAX:
        raise ValueError(f"a key set may have {KEYS_MAX} keys, and this one has {len(members)}")
    keys: list[VerificationKey] = []
    used: list[str] = []
    left_out: list[str] = []
    for index, member in enumerate(members):
        try:
            keys.append(_read_key(member))
            used.append(json.dumps(member, sort_keys=True))
        except ValueError as error:
            left_out.append(f"key {index}: {error}")
    return KeySet(keys, hashlib.sha256("\n".join(sorted(used)).encode("utf-8", "surrogatepass")).digest(), left_out)


def check_inline_keys(text: str, algorithms: Collection[str]) -> None:
    """Of a key set that is published with the routes: all of it must be of use. Raises ValueError."""
    keys = read_key_set(text)
    if keys.left_out:
        raise ValueError(f"'jwks': {keys.left_out[0]}")
    if not len(keys):
        raise ValueError("'jwks' has no key")
    if keys.algorithms().isdisjoint(algorithms):
        fitting = ", ".join(sorted(keys.algorithms()))
        raise ValueError(f"no key of 'jwks' is for one of 'algorithms'; its keys are for {fitting}")


def _read_key(member: Mapping[str, Any]) -> VerificationKey:
    """Raises ValueError for a key that is not used, with the reason."""
    kid = member.get("kid")
    if kid is not None and (not isinstance(kid, str) or len(kid) > KID_CHARS_MAX):
        raise ValueError(f"its 'kid' is no text of at most {KID_CHARS_MAX} characters")
    if "d" in member or member.get("kty") == "oct":
        raise ValueError("it is private or secret, and whoever reads it could sign tokens")
    if member.get("use", "sig") != "sig":
        raise ValueError("its 'use' is not 'sig'")
    operations = member.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("its 'key_ops' do not have 'verify'")
    kind, curve = str(member.get("kty")), str(member.get("crv", ""))
    algorithms = _ALGORITHMS_OF.get((kind, "" if kind == "RSA" else curve), ())
    if not algorithms:
        raise ValueError(f"its kind is not used here: {kind[:16]} {curve[:16]}".rstrip())
    if "alg" in member:
        algorithms = tuple(algorithm for algorithm in algorithms if algorithm == member["alg"])
    if not algorithms:
        raise ValueError("its 'alg' is not one of its kind that is used here")
    try:
        keys = {algorithm: PyJWK(dict(member), algorithm) for algorithm in algorithms}
    except (PyJWTError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError("it cannot be read as a public key") from error
    if kind == "RSA" and not RSA_BITS_MIN <= keys[algorithms[0]].key.key_size <= RSA_BITS_MAX:
        raise ValueError(f"its size is not from {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
    return VerificationKey(kid, keys)
