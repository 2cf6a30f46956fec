"""`quorate keys new`: a key that nobody else has, and an entry that the gateway knows it by."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from quorate_gateway.documents.api_keys_document import parse_api_keys
from quorate_gateway.policies.api_keys import KEY_BYTES_MAX, ApiKeys

Make = Callable[..., Any]


def made(quorate: Make, *arguments: str) -> dict[str, Any]:
    code, out, err = quorate("keys", "new", "--json", *arguments)
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_what_is_printed_is_the_key_and_an_entry_that_knows_it(quorate: Make) -> None:
    code, out, _ = quorate("keys", "new", "--id", "shop-web", "--expires", "2999-01-31")
    assert code == 0
    key, *rest = [line for line in out.splitlines() if line]
    (entry,) = [line for line in rest if line.lstrip().startswith("- {")]
    document = parse_api_keys(f"keys:\n{entry}\n")
    known = ApiKeys()
    known.replace(document)
    found = known.find(key.encode())
    assert found is not None
    assert (found.id, found.enabled, found.expires_at_s) == (b"shop-web", True, 32_474_736_000.0)
    assert out.count(key) == 1
    assert len(key) <= KEY_BYTES_MAX


def test_each_key_is_new_and_hard_to_guess(quorate: Make) -> None:
    found = [made(quorate, "--id", "a")["key"] for _ in range(20)]
    assert len(set(found)) == 20
    assert all(key.startswith("qk_") and len(key) == len("qk_") + 43 for key in found)


def test_for_scripts_all_of_it_is_one_object(quorate: Make) -> None:
    found = made(quorate, "--id", "a", "--expires", "2999-01-31T01:00:00+01:00")
    assert found["sha256"] == hashlib.sha256(found["key"].encode()).hexdigest()
    assert (found["id"], found["expires"]) == ("a", "2999-01-31T00:00:00Z")
    assert found["entry"] == f'- {{id: "a", sha256: "{found["sha256"]}", expires: "2999-01-31T00:00:00Z"}}'
    assert made(quorate, "--id", "a")["expires"] is None


@pytest.mark.parametrize("key_id", ["on", "1e5", "7", "null", "2027-01-31", "0x1", "a" * 64])
def test_an_id_stays_a_text_in_yaml(quorate: Make, key_id: str) -> None:
    (key,) = parse_api_keys(f"keys:\n{made(quorate, '--id', key_id)['entry']}\n").keys
    assert key.id == key_id


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--id", ""], ["--id", "a b"], ["--id", '"}'], ["--id", "a\nb"], ["--id", "-a"], ["--id", "a" * 65],
        ["--id", "a", "--expires", "soon"], ["--id", "a", "--expires", "2020-01-01"],
        ["--id", "a", "--expires", "2999-13-01"],
    ],
)  # fmt: skip
def test_wrong_usage_makes_no_key(quorate: Make, arguments: list[str]) -> None:
    code, out, err = quorate("keys", "new", *arguments)
    assert (code, out) == (2, "")
    assert err
