"""A document is published only when its format parses and its group's validator has nothing against it."""

import asyncio
import threading
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest
from quorate_config_center.checks import (
    CHECKS_WAITING_MAX,
    BrokenValidator,
    ContentChecker,
    decode_content,
    installed_validators,
    load_validators,
)
from quorate_config_center.model import DocumentName
from quorate_core.documents import DOCUMENTS_GROUP, DocumentError
from quorate_core.errors import InvalidContent, PayloadTooLarge, TooManyRequests
from quorate_sdk.wire import CONTENT_BYTES_MAX, ConfigFormat

ROUTES = DocumentName("default", "gateway", "routes.yaml")


def refuses_everything(key: str, content: str) -> Sequence[DocumentError]:
    return [DocumentError(f"{key} has no routes", 3, "routes.0"), DocumentError("and more", 4)]


def crashes(key: str, content: str) -> Sequence[DocumentError]:
    raise RuntimeError("a defect of the validator")


async def refusal_of(checker: ContentChecker, name: DocumentName, content: str) -> InvalidContent:
    with pytest.raises(InvalidContent) as refused:
        await checker.require_valid(name, ConfigFormat.YAML, content)
    return refused.value


async def test_the_format_is_checked_before_the_validator_sees_the_content() -> None:
    refused = await refusal_of(ContentChecker({"gateway": refuses_everything}), ROUTES, "a: 1\na: 2\n")
    assert refused.detail == "default/gateway/routes.yaml is refused, line 2: the key 'a' is given twice in one mapping"


async def test_a_validators_errors_reach_the_publisher_with_line_and_path() -> None:
    refused = await refusal_of(ContentChecker({"gateway": refuses_everything}), ROUTES, "routes: []\n")
    assert refused.extensions["errors"] == [
        {"message": "routes.yaml has no routes", "line": 3, "path": "routes.0"},
        {"message": "and more", "line": 4, "path": ""},
    ]


async def test_a_validator_is_asked_about_its_own_group_only() -> None:
    checker = ContentChecker({"gateway": refuses_everything})
    await checker.require_valid(DocumentName("default", "order", "settings.yaml"), ConfigFormat.YAML, "a: 1")


async def test_a_validator_that_crashes_refuses_the_publish() -> None:
    refused = await refusal_of(ContentChecker({"gateway": crashes}), ROUTES, "a: 1")
    assert "the validator of group gateway failed (RuntimeError)" in refused.detail


async def test_a_validator_that_cannot_be_loaded_refuses_the_publish_of_its_group_alone() -> None:
    entry = EntryPoint("gateway", "quorate_config_center.no_such_module:DOCUMENT", DOCUMENTS_GROUP)
    checker = ContentChecker(load_validators([entry]))
    refused = await refusal_of(checker, ROUTES, "a: 1")
    assert "could not be loaded on this node" in refused.detail
    assert "ModuleNotFoundError" in refused.detail
    await checker.require_valid(DocumentName("default", "order", "a"), ConfigFormat.TEXT, "")


async def test_checks_over_the_limit_are_refused_and_nothing_is_lost_of_the_others() -> None:
    may_end = threading.Event()

    def waits(key: str, content: str) -> Sequence[DocumentError]:
        may_end.wait(30)
        return []

    checker = ContentChecker({"gateway": waits})
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(CHECKS_WAITING_MAX):
            group.create_task(checker.require_valid(ROUTES, ConfigFormat.TEXT, ""))
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            await checker.require_valid(ROUTES, ConfigFormat.TEXT, "")
        may_end.set()
    await checker.require_valid(ROUTES, ConfigFormat.TEXT, "")


def test_the_gateways_validator_is_found_by_its_entry_point() -> None:
    assert not isinstance(installed_validators()["gateway"], BrokenValidator)


def test_a_body_is_utf_8_of_bounded_size() -> None:
    assert decode_content("é".encode()) == "é"
    with pytest.raises(PayloadTooLarge):
        decode_content(b"a" * (CONTENT_BYTES_MAX + 1))
    with pytest.raises(InvalidContent) as refused:
        decode_content(b"a: 1\nb: \xff\n")
    assert refused.value.extensions["errors"] == [{"message": "byte 8 is not UTF-8", "line": 2, "path": ""}]
