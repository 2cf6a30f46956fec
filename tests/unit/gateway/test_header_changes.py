"""Changes of header fields: remove, then set, then add, by a plain reference; and nothing that breaks a head."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from quorate_gateway.documents.changes import PROTECTED, HeaderChanges
from quorate_gateway.policies.header_changes import compile_changes
from quorate_gateway.proxy.framing import is_field_line

BLOCK = b"\r\nHost: shop.example\r\nX-A: 1\r\nx-a: 2\r\nX-Ab: 3\r\nAccept: */*"


def changed(block: bytes, host: str | None = None, **changes: object) -> bytes:
    change = compile_changes(HeaderChanges.model_validate(changes) if changes else None, host)
    assert change is not None
    return change(block)


def test_fields_are_removed_by_their_whole_name_whatever_its_case() -> None:
    assert changed(BLOCK, remove=["X-A"]) == b"\r\nHost: shop.example\r\nX-Ab: 3\r\nAccept: */*"
    assert changed(BLOCK, remove=["x"]) == BLOCK
    assert changed(b"", remove=["x-a"]) == b""


def test_to_set_replaces_all_of_that_name_and_to_add_none() -> None:
    assert changed(BLOCK, set={"X-A": "9"}).endswith(b"\r\nX-Ab: 3\r\nAccept: */*\r\nx-a: 9")
    assert changed(BLOCK, set={"x-new": "9"}) == BLOCK + b"\r\nx-new: 9"
    assert changed(BLOCK, add={"X-A": "9"}) == BLOCK + b"\r\nx-a: 9"
    assert changed(BLOCK, remove=["accept", "x-a"], set={"x-ab": "4"}, add={"x-a": "5"}) == (
        b"\r\nHost: shop.example\r\nx-ab: 4\r\nx-a: 5"
    )


def test_the_host_that_a_service_sees_takes_the_place_of_the_clients() -> None:
    assert changed(BLOCK, "order.internal:81") == b"\r\nhost: order.internal:81" + BLOCK.partition(b"example")[2]
    assert changed(BLOCK, "order.internal", remove=["x-ab", "accept"], add={"x-b": "1"}) == (
        b"\r\nhost: order.internal\r\nX-A: 1\r\nx-a: 2\r\nx-b: 1"
    )
    assert changed(b"\r\nX-Host: a\r\nHost: b", "c") == b"\r\nhost: c\r\nX-Host: a"


def test_nothing_to_change_costs_nothing() -> None:
    assert compile_changes(None) is None
    assert compile_changes(HeaderChanges()) is None


@pytest.mark.parametrize("name", sorted(PROTECTED))
@pytest.mark.parametrize("how", ["remove", "set", "add"])
def test_what_frames_a_message_or_what_the_gateway_vouches_for_cannot_be_changed(how: str, name: str) -> None:
    with pytest.raises(ValidationError, match="cannot be changed"):
        HeaderChanges.model_validate({how: [name.upper()] if how == "remove" else {name.title(): "1"}})


@pytest.mark.parametrize("value", ["", " a", "a ", "a\r\nb: c", "a\nb", "a\x00", "ä", "a\tb"])
def test_a_value_that_could_end_a_field_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        HeaderChanges(set={"x-a": value})


NAMES = st.sampled_from(["x-a", "X-A", "x-b", "X-ab", "accept"])
VALUES = st.text("abc 0", min_size=1, max_size=4).map(str.strip).filter(bool)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)


@given(FIELDS, st.lists(NAMES, max_size=2), st.dictionaries(NAMES, VALUES, max_size=2),
       st.dictionaries(NAMES, VALUES, max_size=2))  # fmt: skip
def test_changes_are_those_of_a_list_of_fields(
    fields: list[tuple[str, str]], removed: list[str], set_to: dict[str, str], added: dict[str, str]
) -> None:
    changes = HeaderChanges(remove=removed, set=set_to, add=added)
    block = b"".join(f"\r\n{name}: {value}".encode() for name, value in fields)
    expected = [(name.lower(), value) for name, value in fields]
    expected = [(name, value) for name, value in expected if name not in changes.remove and name not in changes.set]
    expected += [*changes.set.items(), *changes.add.items()]
    change = compile_changes(changes)
    result = block if change is None else change(block)
    lines = result.split(b"\r\n")[1:]
    assert all(is_field_line(line) for line in lines)
    found = [tuple(line.decode().partition(": ")[::2]) for line in lines]
    assert [(name.lower(), value) for name, value in found] == expected
