"""Keys, preconditions and the next version of a document: decided without a store."""

import pytest
from quorate_config_center.model import (
    Change,
    DocumentName,
    Head,
    Precondition,
    current_key,
    decode_version,
    encode_version,
    name_of_current,
    name_of_version,
    next_deleted,
    next_published,
    version_key,
)
from quorate_core.errors import InvalidRequest, NotFound, PreconditionFailed
from quorate_sdk.wire import ConfigFormat

NAME = DocumentName("default", "order", "settings.yaml")
CHANGE = Change("ann", "why not", "2024-01-01T00:00:00.000Z")


def published(content: bytes = b"a: 1", current: Head | None = None) -> Head:
    head = next_published(current, content, ConfigFormat.YAML, CHANGE)
    assert head is not None
    return head


def test_keys_name_the_document_and_its_versions_in_order() -> None:
    assert current_key(NAME) == b"quorate/config/default/order/settings.yaml"
    assert version_key(NAME, 9) < version_key(NAME, 10)
    assert name_of_current(current_key(NAME)) == NAME
    assert name_of_version(version_key(NAME, 12)) == (NAME, 12)


def test_a_stored_version_keeps_its_content_to_the_byte() -> None:
    content = "line one\n\nline three\r\n é\n"
    head = published(content.encode())
    assert decode_version(encode_version(head, content.encode())) == (head, content)


def test_versions_count_from_1_and_go_on_after_a_deletion() -> None:
    first = published()
    second = published(b"a: 2", first)
    gone = next_deleted(NAME, second, CHANGE)
    again = published(b"a: 2", gone)
    assert [first.version, second.version, gone.version, again.version] == [1, 2, 3, 4]
    assert gone.deleted
    assert not again.deleted


def test_the_same_content_in_the_same_format_is_no_new_version() -> None:
    first = published()
    assert next_published(first, b"a: 1", ConfigFormat.YAML, CHANGE) is None
    assert next_published(first, b"a: 1", ConfigFormat.TEXT, CHANGE) is not None


def test_an_author_who_gives_no_name_is_anonymous() -> None:
    head = next_published(None, b"", ConfigFormat.TEXT, Change("", "", ""))
    assert head is not None
    assert head.author == "anonymous"


@pytest.mark.parametrize("deleted", [False, True])
def test_what_is_not_there_cannot_be_deleted(deleted: bool) -> None:
    current = next_deleted(NAME, published(), CHANGE) if deleted else None
    with pytest.raises(NotFound, match="there is no document default/order"):
        next_deleted(NAME, current, CHANGE)


@pytest.mark.parametrize(("if_match", "versions"), [('"7"', {7}), ("7", {7}), (' "7" , "9"', {7, 9})])
def test_if_match_takes_versions_quoted_or_not(if_match: str, versions: set[int]) -> None:
    assert Precondition.from_headers(if_match, None) == Precondition(versions=frozenset(versions))


@pytest.mark.parametrize(
    ("if_match", "if_none_match"),
    [('W/"7"', None), ("seven", None), ("0", None), ('"-1"', None), ("", None), ("\u0667", None), ('"1', None),
     (None, '"7"'), ("7", "*"), ("9" * 30, None)],
)  # fmt: skip
def test_a_condition_that_is_not_understood_is_refused(if_match: str | None, if_none_match: str | None) -> None:
    with pytest.raises(InvalidRequest):
        Precondition.from_headers(if_match, if_none_match)


@pytest.mark.parametrize(
    ("required", "absent", "present", "deleted"),
    [
        (Precondition(), True, True, True),
        (Precondition.from_headers(None, "*"), True, False, True),
        (Precondition.from_headers("*", None), False, True, False),
        (Precondition.from_headers("1", None), False, True, False),
        (Precondition.from_headers("2", None), False, False, False),
    ],
)
def test_a_precondition_holds_or_names_the_version_that_is_there(
    required: Precondition, absent: bool, present: bool, deleted: bool
) -> None:
    first = published()
    for current, holds, found in (
        (None, absent, 0), (first, present, 1), (next_deleted(NAME, first, CHANGE), deleted, 0),
    ):  # fmt: skip
        if holds:
            required.require(NAME, current)
        else:
            with pytest.raises(PreconditionFailed) as refused:
                required.require(NAME, current)
            assert refused.value.extensions == {"version": found}


@pytest.mark.parametrize("text", ["settings.yaml", "order/", "/a", "Order/a", "order/a/b", "order/a\n", "../a", ""])
def test_what_is_not_group_and_key_names_no_document(text: str) -> None:
    with pytest.raises(ValueError, match="is not group/key"):
        DocumentName.parse("default", text)
