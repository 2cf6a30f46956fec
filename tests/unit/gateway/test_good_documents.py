"""The last good version of a document: what takes its place, what does not, and what a restart finds."""

from pathlib import Path
from typing import NamedTuple

import pytest
from quorate_core.errors import InvalidContent
from quorate_gateway.good_documents import GoodDocument


class Published(NamedTuple):
    version: int
    revision: int
    content: str


def numbers(content: str) -> list[int]:
    try:
        return [int(word) for word in content.split()]
    except ValueError as error:
        raise InvalidContent(f"line 1: {error}") from error


def document(path: Path) -> GoodDocument[list[int]]:
    return GoodDocument("group/numbers", numbers, [], path / "good.json")


async def test_what_is_good_takes_the_place_of_what_was_and_is_found_after_a_restart(tmp_path: Path) -> None:
    found = document(tmp_path)
    found.read()
    assert (found.value, found.good.version) == ([], 0)
    assert await found.take(Published(1, 10, "1 2"))
    await found.file.flush()
    again = document(tmp_path)
    again.read()
    assert (again.value, again.good.version, again.good.revision) == ([1, 2], 1, 10)


async def test_the_same_content_in_a_newer_version_is_no_change_and_is_known_as_that_version(tmp_path: Path) -> None:
    found = document(tmp_path)
    await found.take(Published(1, 10, "1 2"))
    value = found.value
    assert not await found.take(Published(2, 20, "1 2"))
    assert found.value is value
    assert found.good.version == 2


async def test_what_is_not_valid_is_told_of_and_changes_nothing_also_after_a_restart(tmp_path: Path) -> None:
    found = document(tmp_path)
    await found.take(Published(1, 10, "1 2"))
    for _ in range(2):
        assert not await found.take(Published(2, 20, "one"))
        assert found.rejected is not None
        assert (found.rejected.version, found.rejected.revision) == (2, 20)
        assert found.rejected.reason.startswith("line 1: ")
        assert (found.value, found.good.version) == ([1, 2], 1)
    await found.file.flush()
    again = document(tmp_path)
    again.read()
    assert again.value == [1, 2]
    assert not await again.take(Published(2, 20, "one"))
    assert again.rejected is not None
    assert await again.take(Published(3, 30, "3"))
    assert (again.rejected, again.value) == (None, [3])


async def test_a_version_that_is_taken_back_to_the_good_one_is_no_longer_rejected(tmp_path: Path) -> None:
    found = document(tmp_path)
    await found.take(Published(1, 10, "1"))
    await found.take(Published(2, 20, "one"))
    assert not await found.take(Published(3, 30, "1"))
    assert (found.rejected, found.good.version) == (None, 3)


async def test_a_document_that_is_gone_stays_in_force_and_one_that_never_was_is_no_loss(tmp_path: Path) -> None:
    found = document(tmp_path)
    assert not await found.take(None)
    assert found.rejected is None
    await found.take(Published(1, 10, "1"))
    assert not await found.take(None)
    assert found.rejected is not None
    assert (found.rejected.version, found.value) == (0, [1])
    assert not await found.take(Published(1, 40, "1"))
    assert found.rejected is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version":"x"}', b'{"version":1,"revision":1,"content":"x"}'])
async def test_a_damaged_file_does_no_harm(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "good.json").write_bytes(damage)
    found = document(tmp_path)
    found.read()
    assert (found.value, found.good.version) == ([], 0)
    assert await found.take(Published(1, 10, "1"))
