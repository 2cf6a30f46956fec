"""Snapshots as the driver's callers see them: a log that is cut, a state that is found again, a follower that lacks too
much; with real files and real sockets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from quorate_core.errors import OutcomeUnknown, TooManyRequests, Unavailable
from quorate_raft.core.messages import AppendRequest, AppendResponse, Message
from quorate_raft.runtime.ports import ReadPart, SnapshotOffer
from quorate_raft.runtime.snapshots import DamagedSnapshot, Manifest
from quorate_raft.runtime.wal import holds_log
from support.raft_members import PATIENCE_S, RunningCluster, RunningMember, running_cluster

OFTEN = {"snapshot_entries": 20, "trailing_entries": 5}
SEGMENT_BYTES = 4096


async def write_until_cut(cluster: RunningCluster, name: str, above: int = 0) -> None:
    """Write until `name`'s log begins after entry `above`."""
    async with asyncio.timeout(PATIENCE_S):
        while cluster[name].driver.status().first_index <= above + 1:
            await cluster.write(name, b"w%d" % len(cluster[name].machine.words))


async def settle(cluster: RunningCluster) -> None:
    """All members have applied what the leader has."""
    for member in cluster.members.values():
        await member.driver.read_index(PATIENCE_S)


def files(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


async def test_a_log_is_cut_behind_a_snapshot_on_disk_and_in_memory(tmp_path: Path) -> None:
    async with running_cluster("a", tmp_path, segment_bytes_max=SEGMENT_BYTES, **OFTEN) as cluster:
        await cluster.leader()
        await write_until_cut(cluster, "a", above=100)
        status = cluster["a"].driver.status()
        assert status.snapshot_index >= status.first_index + OFTEN["trailing_entries"] - 1
        assert status.last_index - status.first_index < 4 * OFTEN["snapshot_entries"]
    assert len(files(tmp_path / "a", "snapshot-*.mdb")) == 1
    assert "wal-0000000000000001.log" not in files(tmp_path / "a", "wal-*.log")


async def test_a_state_that_is_gone_is_made_again_from_the_snapshot_and_the_log(tmp_path: Path) -> None:
    """As after a crash of the machine, when LMDB's files cannot be believed: a WordList forgets by itself."""
    async with running_cluster("a", tmp_path, **OFTEN) as cluster:
        await cluster.leader()
        await write_until_cut(cluster, "a", above=40)
        words = cluster["a"].machine.words
        await cluster.end("a", kill=True)
        again = cluster.make("a")
        await again.driver.start()
        await again.driver.read_index(PATIENCE_S)
        assert again.machine.words == words


@pytest.mark.parametrize("damage", ["gone", "flipped"])
async def test_a_state_that_is_gone_with_its_snapshot_is_refused(tmp_path: Path, damage: str) -> None:
    """A gap between what there is and where the log begins (etcd #9808)."""
    async with running_cluster("a", tmp_path, **OFTEN) as cluster:
        await cluster.leader()
        await write_until_cut(cluster, "a", above=40)
        await cluster.end("a", kill=True)
        data = next((tmp_path / "a").glob("snapshot-*.mdb"))
        if damage == "gone":
            data.unlink()
        else:
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(content)
        again = cluster.make("a")
        with pytest.raises(DamagedSnapshot, match=data.name):
            await again.driver.start()
        assert holds_log(tmp_path / "a"), "the evidence stays"


async def cut_off_follower(cluster: RunningCluster) -> RunningMember:
    """A follower that hears nobody while the others' logs are cut past what it has."""
    follower = await cluster.follower()
    follower.network.cut = {name for name in cluster.members if name != follower.name}
    for other in cluster.members.values():
        if other is not follower:
            other.network.cut = {follower.name}
    last_index = follower.driver.status().last_index
    for name in cluster.members:
        if name != follower.name:
            await write_until_cut(cluster, name, above=last_index + 10)
    return follower


def heal(cluster: RunningCluster) -> None:
    for member in cluster.members.values():
        member.network.cut = set()


async def test_a_follower_that_lacks_what_was_cut_takes_a_snapshot_over(tmp_path: Path) -> None:
    async with running_cluster("abc", tmp_path, **OFTEN) as cluster:
        follower = await cut_off_follower(cluster)
        lacked = follower.driver.status().last_index
        heal(cluster)
        await settle(cluster)
        leader = await cluster.leader()
        assert follower.driver.status().first_index > lacked + 1
        assert follower.machine.words == leader.machine.words
        # It goes on as any other, and keeps what it took over.
        await cluster.write(follower.name, b"after")
        words = follower.machine.words
        name = follower.name
        await cluster.end(name, kill=True)
        again = cluster.make(name)
        await again.driver.start()
        await again.driver.read_index(PATIENCE_S)
        assert again.machine.words == words


async def test_a_snapshot_that_breaks_off_is_sent_again(tmp_path: Path) -> None:
    async with running_cluster("abc", tmp_path, **OFTEN) as cluster:
        follower = await cut_off_follower(cluster)
        broken = asyncio.Event()
        leader = await cluster.leader(other_than=follower.name)
        read = leader.disk.read

        def read_badly(name: str, offset: int, size_bytes: int) -> bytes:
            part = read(name, offset, size_bytes)
            if broken.is_set():
                return part
            broken.set()
            return part[:-1] + bytes([part[-1] ^ 1])

        leader.disk.read = read_badly  # a broken wire or memory: the checksum catches it
        heal(cluster)
        await settle(cluster)
        assert broken.is_set() or leader is not await cluster.leader()
        assert follower.machine.words == (await cluster.leader()).machine.words


async def test_a_snapshot_whose_receipt_is_lost_is_not_sent_for_ever(tmp_path: Path) -> None:
    """The follower has it, and says so when it is offered again; the log brings the rest."""
    async with running_cluster("abc", tmp_path, **OFTEN) as cluster:
        follower = await cut_off_follower(cluster)
        leader = await cluster.leader(other_than=follower.name)
        lost: list[str] = []
        send_snapshot, send = leader.network.send_snapshot, follower.network.send

        async def send_and_lose(to: str, offer: SnapshotOffer, read: ReadPart) -> None:
            await send_snapshot(to, offer, read)
            if not lost:
                lost.append("the answer")
                raise Unavailable("the connection broke before the answer came")

        def send_but_once(message: Message) -> None:
            if isinstance(message, AppendResponse) and lost == ["the answer"] and not message.rejected:
                lost.append("the message")
            else:
                send(message)

        follower.network.send = send_but_once  # type: ignore[method-assign]
        leader.network.send_snapshot = send_and_lose  # type: ignore[method-assign]
        heal(cluster)
        await settle(cluster)
        assert len(lost) == 2 or leader is not await cluster.leader()
        assert follower.machine.words == (await cluster.leader()).machine.words


async def test_a_leader_whose_snapshot_has_rotted_takes_another_one_to_send(tmp_path: Path) -> None:
    async with running_cluster("abc", tmp_path, **OFTEN) as cluster:
        follower = await cut_off_follower(cluster)
        for name in cluster.members:
            if name != follower.name:
                for data in (tmp_path / name).glob("snapshot-*.mdb"):
                    data.write_bytes(bytes(data.stat().st_size))
        heal(cluster)
        await settle(cluster)
        assert follower.machine.words == (await cluster.leader()).machine.words


async def test_a_write_that_may_be_inside_of_a_snapshot_has_an_unknown_outcome(tmp_path: Path) -> None:
    """Its entry is never applied here, and an entry of a newer term says nothing about it."""
    async with running_cluster("abc", tmp_path, **OFTEN) as cluster:
        leader = await cluster.leader()
        follower = await cluster.follower()
        leader.network.loses_calls = True  # the follower cannot know that its leader's driver never gets the write
        waiting = follower.tasks.start(follower.driver.propose(b"lost or not", PATIENCE_S), "propose")
        async with asyncio.timeout(PATIENCE_S):
            await leader.network.call_lost.wait()
        leader.network.loses_calls = False
        others = {name for name in cluster.members if name != follower.name}
        follower.network.cut = set(others)
        for name in others:
            cluster[name].network.cut = {follower.name}
        last_index = follower.driver.status().last_index
        for name in others:
            await write_until_cut(cluster, name, above=last_index + 10)
        heal(cluster)
        with pytest.raises(OutcomeUnknown, match="snapshot"):
            await waiting
        follower.failures.clear()  # the owner of the task hears of its error as well


async def test_a_disk_without_room_for_a_snapshot_leaves_the_log_and_the_member_goes_on(tmp_path: Path) -> None:
    async with running_cluster("a", tmp_path, **OFTEN) as cluster:
        member = await cluster.leader()
        refused = asyncio.Event()

        def no_room(path: Path) -> tuple[int, int]:
            refused.set()
            raise OutcomeUnknown("cannot write the snapshot: the disk is full")

        save, member.machine.save_snapshot = member.machine.save_snapshot, no_room  # type: ignore[method-assign]
        async with asyncio.timeout(PATIENCE_S):
            while not refused.is_set():
                await cluster.write("a", b"word")
        before = member.driver.status()
        assert before.first_index == 1
        assert not member.failures
        member.machine.save_snapshot = save  # type: ignore[method-assign]
        await write_until_cut(cluster, "a", above=1)


async def newest_snapshot(cluster: RunningCluster, name: str, folder: Path) -> tuple[Manifest, bytes]:
    """As it is on the disk of `name`, which takes no other one meanwhile."""
    await write_until_cut(cluster, name, above=cluster[name].driver.status().first_index)
    manifest = folder / files(folder, "snapshot-*.json")[-1]
    return msgspec.json.decode(manifest.read_bytes(), type=Manifest), manifest.with_suffix(".mdb").read_bytes()


async def test_a_second_snapshot_does_not_replace_one_that_waits_for_a_slow_disk(tmp_path: Path) -> None:
    async with running_cluster("abc", tmp_path, **OFTEN) as cluster:
        follower = await cut_off_follower(cluster)
        leader = await cluster.leader(other_than=follower.name)
        term = leader.driver.status().term + 1
        older = await newest_snapshot(cluster, leader.name, tmp_path / leader.name)
        newer = await newest_snapshot(cluster, leader.name, tmp_path / leader.name)
        assert older[0].meta.index < newer[0].meta.index

        async def offer(manifest: Manifest, data: bytes) -> None:
            async def chunks() -> AsyncIterator[bytes]:
                yield data

            said = SnapshotOffer(term, manifest.meta, manifest.size_bytes, manifest.checksum)
            await follower.driver.on_snapshot(leader.name, said, chunks())

        follower.disk.let_go.clear()
        # A new term is to be persisted first, and so the snapshot's turn does not come.
        follower.driver.on_message(AppendRequest(leader.name, follower.name, term, 10**6, term, (), 0))
        await offer(*older)
        with pytest.raises(TooManyRequests):
            await offer(*newer)
        follower.disk.let_go.set()
        async with asyncio.timeout(PATIENCE_S):
            while follower.machine.applied_index < older[0].meta.index:
                follower.machine.changed.clear()
                await follower.machine.changed.wait()
        assert not follower.failures
        heal(cluster)
        await settle(cluster)
        assert follower.machine.words == (await cluster.leader()).machine.words
