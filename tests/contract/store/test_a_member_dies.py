"""Members die and stand still while clients write with request ids and watch: nothing is lost, and nothing done twice.

The member that the client is connected to is killed (kill -9), and later the one that it is connected to by then is
paused (SIGSTOP). What the watches told is compared with the history that the store has in the end.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from quorate_core.errors import QuorateError, Retry
from quorate_store.etcd import EtcdStore
from quorate_store.model import Event, KeyValue, WatchBatch, prefix_end
from quorate_store.port import Store
from support.external_stores import EtcdMembers, ExternalStore, OwnNodes
from support.store_etcd import etcd_store, platform_headers, running_etcd, running_nodes, until_healthy

WRITERS = 4
WRITES_A_PHASE = 10
"""Of each writer, acknowledged after the fault has begun."""
PHASE_S_MAX = 40.0
PREFIX = b"dies/"


@dataclass
class Members:
    """Three members that can be killed and paused, by the names that they have in the store."""

    store: ExternalStore
    names: list[str]

    def place_of(self, name: str) -> int:
        return self.names.index(name)

    def signal(self, place: int, number: signal.Signals) -> None:
        os.kill(self._pid(place), number)

    async def revive(self, place: int) -> None:
        self.store.start(place)
        if isinstance(self.store, OwnNodes):
            await asyncio.to_thread(self.store.cluster.nodes[place].wait_ready)
        elif isinstance(self.store, EtcdMembers):
            await asyncio.to_thread(until_healthy, self.store)

    def _pid(self, place: int) -> int:
        if isinstance(self.store, EtcdMembers):
            return self.store.processes[place].pid
        assert isinstance(self.store, OwnNodes)
        process = self.store.cluster.nodes[place].process
        assert process is not None
        return process.pid


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[tuple[Members, EtcdStore]]:
    async with AsyncExitStack() as stack:
        if kind == "etcd":
            etcd = stack.enter_context(running_etcd(folder))
            members, headers = Members(etcd, [f"e{place}" for place in range(3)]), {}
        else:
            nodes = stack.enter_context(running_nodes(folder))
            members, headers = Members(nodes, [node.name for node in nodes.cluster.nodes]), platform_headers(nodes)
        yield members, await stack.enter_async_context(etcd_store(members.store.endpoints, headers))


@dataclass
class Load:
    """Writers that put values which occur once, and what was acknowledged."""

    store: Store
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    """The revision of each value."""
    repeated: int = 0
    """Writes whose outcome stayed open, and which were asked for again with the same id."""
    is_stopping: bool = False
    counts: list[int] = field(default_factory=lambda: [0] * WRITERS)
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self, writer: int) -> None:
        while not self.is_stopping:
            await self._write(writer, b"%d-%d" % (writer, self.counts[writer]))
            async with self.progress:
                self.counts[writer] += 1
                self.progress.notify_all()

    async def _write(self, writer: int, value: bytes) -> None:
        while True:
            try:
                put = await self.store.put(PREFIX + b"%d" % writer, value, request_id=value.decode())
            except QuorateError as error:
                if error.kind.retry is Retry.NEVER:
                    raise
                self.repeated += 1
            else:
                self.acknowledged[value] = put.revision
                return

    async def go_on(self) -> None:
        """Returns when each writer has had so many more writes acknowledged."""
        wanted = [number + WRITES_A_PHASE for number in self.counts]
        async with asyncio.timeout(PHASE_S_MAX), self.progress:
            await self.progress.wait_for(lambda: all(map(int.__ge__, self.counts, wanted)))


@dataclass
class Told:
    """What a watch has told, in order."""

    events: list[Event] = field(default_factory=list)
    revision: int = 0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow(self, batches: AsyncIterator[WatchBatch]) -> None:
        async for batch in batches:
            assert batch.revision > self.revision or not batch.events
            self.events += batch.events
            async with self.moved:
                self.revision = max(self.revision, batch.revision)
                self.moved.notify_all()

    async def reach(self, revision: int) -> None:
        async with asyncio.timeout(PHASE_S_MAX), self.moved:
            await self.moved.wait_for(lambda: self.revision >= revision)


async def kill_and_pause(members: Members, store: EtcdStore, load: Load, watchers: list[Told]) -> None:
    async def all_go_on() -> None:
        await load.go_on()
        newest = max(load.acknowledged.values())
        for told in watchers:
            await told.reach(newest)

    await all_go_on()
    killed = members.place_of((await store.status()).name)
    members.store.kill(killed)
    await all_go_on()
    await members.revive(killed)
    paused = members.place_of((await store.status()).name)
    members.signal(paused, signal.SIGSTOP)
    try:
        await all_go_on()
    finally:
        members.signal(paused, signal.SIGCONT)
    await all_go_on()


@pytest.mark.parametrize("kind", ["etcd", "quorate nodes"])
@pytest.mark.timeout(180)
async def test_nothing_is_lost_and_nothing_done_twice_when_members_die_and_stand_still(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path) as (members, store):
        load, plain, previous = Load(store), Told(), Told()
        begun = (await store.put(PREFIX, b"begun")).revision
        end = prefix_end(PREFIX)
        async with (
            store.watch(PREFIX, end, start_revision=begun + 1) as first,
            store.watch(PREFIX, end, start_revision=begun + 1, previous=True) as second,
            asyncio.TaskGroup() as group,
        ):
            following = [
                group.create_task(plain.follow(aiter(first))),
                group.create_task(previous.follow(aiter(second))),
            ]
            writing = [group.create_task(load.run(writer)) for writer in range(WRITERS)]
            await kill_and_pause(members, store, load, [plain, previous])
            load.is_stopping = True
            await asyncio.wait(writing)
            last = max(load.acknowledged.values())
            await plain.reach(last)
            await previous.reach(last)
            for task in following:
                task.cancel()
        history = await read_history(store, begun + 1, last)
    assert [event.kv.value for event in history] == sorted(load.acknowledged, key=load.acknowledged.__getitem__)
    assert [event.kv.mod_revision for event in history] == sorted(load.acknowledged.values())
    assert plain.events == history
    assert [Event(event.kind, event.kv) for event in previous.events] == history
    require_previous(previous.events)


async def read_history(store: Store, start: int, last: int) -> list[Event]:
    told = Told()
    async with store.watch(PREFIX, prefix_end(PREFIX), start_revision=start) as watch, asyncio.TaskGroup() as group:
        following = group.create_task(told.follow(aiter(watch)))
        await told.reach(last)
        following.cancel()
    return told.events


def require_previous(events: list[Event]) -> None:
    """Each event has the one before it of its key."""
    newest: dict[bytes, KeyValue] = {}
    for event in events:
        assert event.previous == newest.get(event.kv.key)
        newest[event.kv.key] = event.kv
