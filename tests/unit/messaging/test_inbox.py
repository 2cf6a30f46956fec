"""The inbox: each event is consumed exactly once."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from quorate_messaging import Database, Event
from support.services_database import INBOX, an_event, create_database, note, notes, opened


async def consume(database: Database, event: Event, note_id: str) -> bool:
    async with database.writing() as connection:
        new = await INBOX.admit(connection, event, 1_000.0)
        if new:
            await note(connection, note_id, event.sequence)
        return new


async def test_an_event_is_new_once_and_its_change_is_made_once(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database:
        event = an_event("order", 1)
        assert await consume(database, event, "first")
        assert not await consume(database, event, "second")
        assert await notes(database) == {"first": 1}


async def test_the_same_id_from_another_source_is_another_event(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database:
        event = an_event("order", 1)
        assert await consume(database, event, "first")
        assert await consume(database, dataclasses.replace(event, source="/test/another"), "second")


async def test_an_event_whose_change_failed_is_new_again(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database:
        event = an_event("order", 1)

        async def consume_and_fail() -> None:
            async with database.writing() as connection:
                assert await INBOX.admit(connection, event, 1_000.0)
                raise RuntimeError("the consumer failed")

        with pytest.raises(RuntimeError):
            await consume_and_fail()
        assert await consume(database, event, "second")


async def test_duplicates_that_arrive_together_at_two_processes_are_consumed_once(tmp_path: Path) -> None:
    file = create_database(tmp_path / "a.db")
    async with opened(file) as one, opened(file) as other:
        event = an_event("order", 1)
        results = await asyncio.gather(*(consume(each, event, f"n{i}") for i, each in enumerate([one, other] * 5)))
        assert sorted(results) == [False] * 9 + [True]
        assert len(await notes(one)) == 1


async def test_pruning_forgets_the_oldest_first_and_no_more_than_asked(tmp_path: Path) -> None:
    async with opened(create_database(tmp_path / "a.db")) as database, database.writing() as connection:
        for sequence in (1, 2, 3, 4):
            await INBOX.admit(connection, an_event("order", sequence), float(sequence))
        assert await INBOX.prune(connection, received_before_s=4.0, rows_max=2) == 2
        known = [not await INBOX.admit(connection, an_event("order", sequence), 9.0) for sequence in (1, 2, 3, 4)]
        assert known == [False, False, True, True]
