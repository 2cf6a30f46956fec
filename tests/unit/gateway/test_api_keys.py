"""API keys: the document is refused with the line of what is wrong, and a key is found by its digest alone."""

import hashlib
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.documents import DocumentError
from quorate_core.errors import InvalidContent
from quorate_gateway.documents.access import KEYS_MAX, ApiKey, ApiKeysDocument
from quorate_gateway.documents.api_keys_document import (
    DOCUMENT_BYTES_MAX,
    NO_KEYS,
    check_api_keys,
    parse_api_keys,
)
from quorate_gateway.policies.api_keys import KEY_BYTES_MAX, ApiKeys, KnownKey
from quorate_gateway.routes import DOCUMENT


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


A, B = digest("a"), digest("b")


def errors(content: str) -> Sequence[DocumentError]:
    return check_api_keys(content)[1]


def test_a_document_is_read() -> None:
    document = parse_api_keys(
        f"""
keys:
  - {{id: shop-web, sha256: "{A}"}}
  - {{id: partner, sha256: "{B}", expires: 2027-01-31T00:00:00Z, enabled: false}}
"""
    )
    web, partner = document.keys
    assert (web.id, web.enabled, web.expires_at_s) == ("shop-web", True, math.inf)
    assert (partner.enabled, partner.expires_at_s) == (False, 1_801_353_600.0)


def test_an_empty_list_is_a_document() -> None:
    assert parse_api_keys("keys: []\n") == NO_KEYS


@pytest.mark.parametrize("expires", ["2027-01-31T01:00:00+01:00", '"2027-01-31T00:00:00Z"', "2027-01-30 19:00:00 -5"])
def test_an_expiry_is_a_moment_in_any_of_its_forms(expires: str) -> None:
    (key,) = parse_api_keys(f'keys:\n  - {{id: a, sha256: "{A}", expires: {expires}}}\n').keys
    assert key.expires_at_s == 1_801_353_600.0


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("", 1, "empty"),
        ("[]", 1, "must be a mapping"),
        ("keys:\n  - {id: a\n", 3, "not valid YAML"),
        ("keyz: []\n", 1, "did you mean 'keys'"),
        (f"keys:\n  - id: a\n    sha265: {A}\n", 3, "did you mean 'sha256'"),
        ("keys:\n  - {id: a}\n", 2, "'sha256' is missing"),
        (f"keys:\n  - id: a\n    sha256: {A.upper()}\n", 3, "pattern"),
        ("keys:\n  - id: a\n    sha256: secret\n", 3, "pattern"),
        (f"keys:\n  - id: a b\n    sha256: {A}\n", 2, "pattern"),
        (f"keys:\n  - id: 1\n    sha256: {A}\n", 2, "valid string"),
        (f"keys:\n  - id: a\n    sha256: {A}\n    enabled: maybe\n", 4, "boolean"),
        (f"keys:\n  - id: a\n    sha256: {A}\n    expires: soon\n", 4, "is written as"),
        (f"keys:\n  - id: a\n    sha256: {A}\n    expires: 20270131\n", 4, "is written as"),
        (f"keys:\n  - id: a\n    sha256: {A}\n    expires: '1801353600'\n", 4, "is written as"),
        (f"keys:\n  - id: a\n    sha256: {A}\n    expires: 2027-01-31T00:00:00\n", 4, "timezone"),
        (f"keys:\n  - id: a\n    sha256: {A}\n    expires: 2027-01-31\n", 4, "timezone"),
        (f"keys:\n  - id: a\n    sha256: {A}\n  - id: a\n    sha256: {B}\n", 4, "that of another key, in line 2"),
        (f"keys:\n  - id: a\n    sha256: {A}\n  - id: b\n    sha256: {A}\n", 5, "that of another key, in line 3"),
        (f"keys:\n  - id: a\n    id: b\n    sha256: {A}\n", 3, "given twice"),
        ("keys:\n" + f"  - {{id: a, sha256: {A}}}\n" * (KEYS_MAX + 1), 1, f"at most {KEYS_MAX}"),
        ("# " + "x" * DOCUMENT_BYTES_MAX, 0, "over"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(content: str, line: int, said: str) -> None:
    first = errors(content)[0]
    assert (first.line, said in first.message) == (line, True), first
    with pytest.raises(InvalidContent):
        parse_api_keys(content)


def test_the_group_s_validator_knows_the_document() -> None:
    assert not DOCUMENT("api-keys.yaml", "keys: []\n")
    assert DOCUMENT("api-keys.yaml", "keys: 1\n")[0].line == 1
    assert not DOCUMENT("notes.yaml", "keys: 1\n")


def test_as_many_keys_as_are_allowed_fit_into_a_document() -> None:
    lines = [
        f'  - {{id: "{number:064}", sha256: "{digest(str(number))}", enabled: true}}' for number in range(KEYS_MAX)
    ]
    content = "keys:\n" + "\n".join(lines)
    assert len(content) < DOCUMENT_BYTES_MAX
    assert errors(content) == []


def keys(*of: str) -> ApiKeys:
    found = ApiKeys()
    found.replace(ApiKeysDocument(keys=[ApiKey(id=f"id-{key[:9]}", sha256=digest(key)) for key in of]))
    return found


def test_a_key_is_found_by_itself_and_by_nothing_near_it() -> None:
    known = keys("alpha", "beta")
    assert known.find(b"alpha") == KnownKey(b"id-alpha", True, math.inf)
    for near in (b"", b"alph", b"alpha ", b"Alpha", b"alpha\x00", digest("alpha").encode(), b"id-alpha"):
        assert known.find(near) is None


@given(st.binary(max_size=64))
def test_no_other_bytes_are_a_key(presented: bytes) -> None:
    assert (keys("alpha").find(presented) is not None) == (presented == b"alpha")


def test_a_longer_key_than_anybody_makes_is_nobody_s() -> None:
    assert keys("x" * KEY_BYTES_MAX).find(b"x" * KEY_BYTES_MAX) is not None
    assert keys("x" * (KEY_BYTES_MAX + 1)).find(b"x" * (KEY_BYTES_MAX + 1)) is None


def test_replacing_takes_back_what_is_no_longer_there() -> None:
    known = keys("alpha")
    known.replace(ApiKeysDocument(keys=[ApiKey(id="beta", sha256=digest("beta"))]))
    assert (known.find(b"alpha"), known.find(b"beta") is not None, len(known)) == (None, True, 1)


def test_before_any_document_nothing_is_known() -> None:
    assert not ApiKeys().is_known
    assert keys().is_known
