"""Every change of a document is one transaction: no version is skipped, given twice, or without its row."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from quorate_config_center.history import COMPARE_ATTEMPTS_MAX, DocumentHistory
from quorate_config_center.model import Change, DocumentName, Precondition, current_key, version_key
from quorate_core.errors import Conflict, InvariantViolation, NotFound, PreconditionFailed, Unavailable
from quorate_sdk.wire import CONTENT_BYTES_MAX, ConfigFormat
from quorate_store.model import prefix_end
from quorate_store.port import Store
from support.store_local import local_store

NAME = DocumentName("default", "order", "settings.yaml")
CHANGE = Change("ann", "", "2024-01-01T00:00:00.000Z")
ANY = Precondition()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


async def publish(history: DocumentHistory, content: str, required: Precondition = ANY) -> int:
    outcome = await history.publish(NAME, content, ConfigFormat.TEXT, CHANGE, required)
    return outcome.stored.head.version


async def test_a_document_is_read_as_it_was_published(store: Store) -> None:
    history = DocumentHistory(store)
    outcome = await history.publish(NAME, "a: é\n", ConfigFormat.YAML, CHANGE, ANY)
    found = await history.read(NAME)
    assert (outcome.created, outcome.changed) == (True, True)
    assert (found.content, found.head, found.revision) == ("a: é\n", outcome.stored.head, outcome.stored.revision)


async def test_head_and_row_of_a_version_share_one_revision(store: Store) -> None:
    await publish(DocumentHistory(store), "one")
    [head], [row] = [(await store.range(key)).kvs for key in (current_key(NAME), version_key(NAME, 1))]
    assert head.mod_revision == row.mod_revision


async def test_the_largest_document_fits(store: Store) -> None:
    history = DocumentHistory(store)
    content = '"' * CONTENT_BYTES_MAX
    await publish(history, content)
    assert (await history.read(NAME)).content == content


async def test_the_same_content_again_changes_nothing(store: Store) -> None:
    history = DocumentHistory(store)
    await publish(history, "one")
    before = (await store.range(b"quorate/")).revision
    outcome = await history.publish(NAME, "one", ConfigFormat.TEXT, CHANGE, ANY)
    assert (outcome.changed, outcome.created, outcome.stored.head.version) == (False, False, 1)
    assert (await store.range(b"quorate/")).revision == before


async def test_writers_at_the_same_time_each_get_a_version_of_their_own(store: Store) -> None:
    history = DocumentHistory(store)
    versions = await asyncio.gather(*(publish(history, f"content {number}") for number in range(10)))
    assert sorted(versions) == list(range(1, 11))
    for version in versions:
        await history.read_version(NAME, version)


class OvertakenStore:
    """A real store on which another writer always comes first."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def txn(self, *arguments: Any) -> Any:
        await publish(DocumentHistory(self.store), f"overtaken at {(await self.store.range(b'x')).revision}")
        return await self.store.txn(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


async def test_a_writer_who_is_always_overtaken_gives_up_and_has_written_nothing(store: Store) -> None:
    with pytest.raises(Unavailable, match="nothing was written"):
        await publish(DocumentHistory(OvertakenStore(store)), "mine")
    versions = await DocumentHistory(store).versions(NAME, 100)
    assert len(versions) == COMPARE_ATTEMPTS_MAX
    assert (await DocumentHistory(store).read(NAME)).content != "mine"


async def test_of_writers_over_the_same_version_one_wins(store: Store) -> None:
    history = DocumentHistory(store)
    await publish(history, "one")
    required = Precondition(versions=frozenset({1}))
    outcomes = await asyncio.gather(
        *(publish(history, f"content {number}", required) for number in range(8)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["PreconditionFailed"] * 7 + ["int"]


async def test_of_writers_of_a_new_document_one_creates_it(store: Store) -> None:
    history = DocumentHistory(store)
    required = Precondition(exists=False)
    outcomes = await asyncio.gather(*(publish(history, "same", required) for _ in range(4)), return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, PreconditionFailed)] == [1]


async def test_only_the_newest_versions_are_kept(store: Store) -> None:
    history = DocumentHistory(store, versions_kept=3)
    for number in range(1, 8):
        await publish(history, f"content {number}")
    rows = await store.range(version_key(NAME, 0), prefix_end(version_key(NAME, 0)[:-20]), keys_only=True)
    assert [int(kv.key[-20:]) for kv in rows.kvs] == [5, 6, 7]
    assert [stored.head.version for stored in await history.versions(NAME, 100)] == [7, 6, 5]
    with pytest.raises(NotFound, match="the newest 3 are kept"):
        await history.read_version(NAME, 4)


async def test_keeping_fewer_versions_sweeps_the_rest_at_the_next_change(store: Store) -> None:
    for number in range(1, 6):
        await publish(DocumentHistory(store), f"content {number}")
    fewer = DocumentHistory(store, versions_kept=2)
    await publish(fewer, "content 6")
    assert (await store.range(version_key(NAME, 0), version_key(NAME, 99))).count == 2


async def test_a_deletion_is_a_version_and_the_next_one_comes_after_it(store: Store) -> None:
    history = DocumentHistory(store)
    await publish(history, "one")
    gone = await history.delete(NAME, CHANGE, ANY)
    assert (gone.stored.head.version, gone.stored.head.deleted) == (2, True)
    with pytest.raises(NotFound):
        await history.read(NAME)
    outcome = await history.publish(NAME, "one", ConfigFormat.TEXT, CHANGE, Precondition(exists=False))
    assert (outcome.stored.head.version, outcome.created) == (3, True)
    assert [stored.head.deleted for stored in await history.versions(NAME, 10)] == [False, True, False]


async def test_a_deletion_asks_for_its_precondition_only_of_what_is_there(store: Store) -> None:
    history = DocumentHistory(store)
    with pytest.raises(NotFound):
        await history.delete(NAME, CHANGE, Precondition(versions=frozenset({1})))
    await publish(history, "one")
    with pytest.raises(PreconditionFailed):
        await history.delete(NAME, CHANGE, Precondition(versions=frozenset({2})))
    await history.delete(NAME, CHANGE, Precondition(versions=frozenset({1})))


async def test_a_deletion_is_nothing_to_roll_back_to(store: Store) -> None:
    history = DocumentHistory(store)
    await publish(history, "one")
    await history.delete(NAME, CHANGE, ANY)
    with pytest.raises(Conflict, match="is a deletion"):
        await history.content_to_restore(NAME, 2)
    assert (await history.content_to_restore(NAME, 1)).content == "one"


async def test_documents_are_listed_by_namespace_and_group_in_pages_without_the_deleted(store: Store) -> None:
    history = DocumentHistory(store, heads_a_page=2)
    for group in ("a", "b"):
        for key in ("1", "2", "3"):
            await history.publish(DocumentName("n", group, key), key, ConfigFormat.TEXT, CHANGE, ANY)
    await history.publish(DocumentName("n2", "a", "1"), "", ConfigFormat.TEXT, CHANGE, ANY)
    await history.delete(DocumentName("n", "a", "2"), CHANGE, ANY)
    revision, listed = await history.listed("n", None)
    assert [f"{name.group}/{name.key}" for name, _ in listed] == ["a/1", "a/3", "b/1", "b/2", "b/3"]
    assert revision == (await store.range(b"x")).revision
    assert [name.key for name, _ in (await history.listed("n", "b"))[1]] == ["1", "2", "3"]


async def test_one_unreadable_row_hides_no_other_document(store: Store) -> None:
    history = DocumentHistory(store)
    await publish(history, "one")
    await store.put(b"quorate/config/default/order/damaged", b"not a head")
    assert [name for name, _ in (await history.listed("default", None))[1]] == [NAME]


async def test_a_row_that_cannot_be_read_is_a_diagnosis_and_no_document(store: Store) -> None:
    history = DocumentHistory(store)
    await publish(history, "one")
    await store.put(version_key(NAME, 1), b"not a row")
    with pytest.raises(InvariantViolation, match="version 1 of default/order"):
        await history.read(NAME)
    await store.put(current_key(NAME), b"not a head")
    with pytest.raises(InvariantViolation, match="cannot be read"):
        await publish(history, "two")
