"""Members that come and go while the network runs: who is dialled, who is let in, who is told that it was removed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from prometheus_client import REGISTRY
from quorate_core.errors import NotProposed, OutcomeUnknown, QuorateError
from quorate_core.serving import bound_address, open_listener
from quorate_raft.core.membership import Member, Membership
from quorate_raft.core.messages import HeartbeatRequest, HeartbeatResponse, Message, SnapshotMeta
from quorate_raft.runtime.handshake import NONCE_BYTES, DialerHandshake, Purpose
from quorate_raft.runtime.ports import SnapshotOffer
from quorate_raft.runtime.tcp import GUESTS_MAX
from structlog.testing import capture_logs
from support.raft_members import LOOPBACK, PATIENCE_S
from support.raft_peers import (
    Site,
    Town,
    credentials,
    proven_connection,
    raw_connection,
    shake_hands,
    town,
    until,
    watch_loop,
)


def voters(built: Town, names: str, *, removed: str = "") -> Membership:
    membership = Membership.of_voters({name: str(built.addresses[name]) for name in names})
    return Membership(membership.members, tuple(removed))


@contextlib.asynccontextmanager
async def trio() -> AsyncIterator[tuple[Town, Site, Site, Site]]:
    """Three members that have all their links, and know of each other by their configuration alone."""
    async with town("abc") as built:
        sites = []
        for name in "abc":
            site = built.make(name, peers={})
            site.network.set_members(voters(built, "abc"))
            await site.network.start(site.receiver)
            sites.append(site)
        a, b, c = sites
        for site, peers in ((a, "bc"), (b, "ac"), (c, "ab")):
            for peer in peers:
                await site.up(peer)
        yield built, a, b, c


def heartbeat(sender: str, to: str, term: int = 1) -> HeartbeatRequest:
    return HeartbeatRequest(sender, to, term, 1)


def counters(member: str) -> set[str]:
    """Peers for which `member` counts what it drops."""
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    name = "quorate_raft_messages_dropped_total"
    return {sample.labels["peer"] for sample in samples if sample.name == name and sample.labels["member"] == member}


async def test_a_member_that_is_added_is_dialled_and_let_in_and_the_other_links_stay() -> None:
    async with town("abc") as built:
        a, b, c = built.make("a", peers={}), built.make("b", peers={}), built.make("c", peers={})
        for site in (a, b):
            site.network.set_members(voters(built, "ab"))
            await site.network.start(site.receiver)
        await a.up("b")
        link = a.link_to("b")
        c.network.set_members(voters(built, "abc"))
        await c.network.start(c.receiver)
        for site in (a, b):
            site.network.set_members(voters(built, "abc"))
        for site, peers in ((a, "bc"), (b, "ac"), (c, "ab")):
            for peer in peers:
                await site.up(peer)
        c.network.send(heartbeat("c", "a"))
        a.network.send(heartbeat("a", "c"))
        assert (await a.receiver.next()).sender == "c"
        assert (await c.receiver.next()).sender == "a"
        assert a.link_to("b") is link


async def test_a_member_that_is_removed_loses_its_links_and_is_told_so_by_who_removed_it() -> None:
    async with trio() as (built, a, b, c):
        kept = a.link_to("b")
        a.network.set_members(voters(built, "ab", removed="c"))
        assert a.network.connected() == ["b"]
        async with asyncio.timeout(PATIENCE_S):
            assert await c.receiver.removed_by.get() == "a"
        await until(lambda: all(link.peer != "c" for link in a.links if link.is_ready))
        assert a.link_to("b") is kept
        assert b.network.connected() == ["a", "c"]
        assert c.receiver.removed_by.empty() or await c.receiver.removed_by.get() == "a"


async def test_who_is_neither_a_member_nor_was_removed_is_a_guest_and_is_dialled_back() -> None:
    """It may lead a configuration of which this member has still to hear, and an answer must reach it."""
    async with trio() as (built, a, _b, c):
        a.network.set_members(voters(built, "ab"))
        await until(lambda: "c" in a.network._peers and a.network._peers["c"].is_guest)
        await a.up("c")
        await c.up("a")
        assert c.receiver.removed_by.empty()
        c.network.send(HeartbeatRequest("c", "a", 7, 0))
        assert (await a.receiver.next()).term == 7
        a.network.send(HeartbeatResponse("a", "c", 7))
        assert (await c.receiver.next()).term == 7
        a.network.set_members(voters(built, "abc"))
        assert not a.network._peers["c"].is_guest
        assert "c" in a.network.connected()


async def test_a_guest_is_forgotten_when_it_is_gone_or_removed() -> None:
    async with trio() as (built, a, _b, c):
        a.network.set_members(voters(built, "ab"))
        await until(lambda: "c" in a.network._peers)
        await c.network.close()
        await until(lambda: "c" not in a.network._peers)
        assert a.network._callers.guests_left == GUESTS_MAX


async def test_a_guest_of_which_is_heard_that_it_was_removed_is_hung_up_on_and_told() -> None:
    async with trio() as (built, a, _b, c):
        a.network.set_members(voters(built, "ab"))
        await until(lambda: "c" in a.network._peers)
        a.network.set_members(voters(built, "ab", removed="c"))
        assert "c" not in a.network._peers
        async with asyncio.timeout(PATIENCE_S):
            assert await c.receiver.removed_by.get() == "a"


async def test_a_member_that_was_away_hears_a_leader_that_it_cannot_know_and_gets_its_snapshot() -> None:
    """All whom it knows may be gone by now; what it learns of the others, it learns from a guest."""
    async with town("az") as built:
        a, z = built.make("a", peers={}), built.make("z", peers={})
        a.network.set_members(Membership((Member("a", str(built.addresses["a"])), Member("gone", "127.0.0.1:1"))))
        z.network.set_members(voters(built, "az"))
        for site in (a, z):
            await site.network.start(site.receiver)
        await z.up("a")
        z.network.send(heartbeat("z", "a"))
        assert (await a.receiver.next()).sender == "z"
        await a.up("z")
        assert await a.network.call("z", "propose", b"!", PATIENCE_S) == b"propose of a: !"
        offer = SnapshotOffer(1, SnapshotMeta(9, 1, voters(built, "az")), 3, 0)

        async def read(offset: int, size_bytes: int) -> bytes:
            return b"abc"[offset : offset + size_bytes]

        await z.network.send_snapshot("a", offer, read)
        assert a.receiver.snapshots == [("z", offer, b"abc")]
        link = a.link_to("z")
        a.network.set_members(voters(built, "az"))
        assert a.link_to("z") is link


@pytest.mark.parametrize("address", ["", "nonsense", "a..b:80", "x" * 2000])
async def test_a_guest_that_nobody_could_dial_hurts_nobody(address: str) -> None:
    async with town("ab") as built:
        b, caught = await built.start("b"), watch_loop()
        failures: list[BaseException] = []
        b.tasks._on_failure = failures.append
        async with raw_connection(b.address) as raw:
            nonce = b"n" * NONCE_BYTES
            handshake = DialerHandshake(credentials("guest"), "b", nonce, Purpose.MESSAGES, address)
            await raw.say(handshake.opening())
            await raw.say(handshake.receive(await raw.hear()))
            handshake.receive(await raw.hear())
            await raw.tell(b"m", msgspec.msgpack.encode(heartbeat("guest", "b")))
            assert (await b.receiver.next()).sender == "guest"
            b.network.send(heartbeat("b", "guest"))
        await until(lambda: "guest" not in b.network._peers)
        assert (caught, failures) == ([], [])


async def test_no_more_guests_are_taken_than_a_cluster_has_members() -> None:
    async with town("ab") as built:
        b = await built.start("b")
        async with contextlib.AsyncExitStack() as guests:
            for number in range(GUESTS_MAX):
                raw = await guests.enter_async_context(raw_connection(b.address))
                await shake_hands(raw, f"guest-{number}", "b")
            one_more = await guests.enter_async_context(raw_connection(b.address))
            with pytest.raises(QuorateError, match="as many guests as it takes"):
                await shake_hands(one_more, "one-more", "b")
        await until(lambda: set(b.network._peers) == {"a"})


async def test_what_belongs_to_a_peer_ends_with_it() -> None:
    async with trio() as (built, a, _b, c):
        called = asyncio.Event()

        async def never(_method: str, _payload: bytes) -> bytes:
            called.set()
            await asyncio.Event().wait()
            return b""

        c.receiver.handler = never
        call = a.tasks.start(a.network.call("c", "any", b"", PATIENCE_S), "call")
        async with asyncio.timeout(PATIENCE_S):
            await called.wait()
        before = len(a.tasks)
        assert "c" in counters("a")
        a.network.set_members(voters(built, "ab", removed="c"))
        with pytest.raises(OutcomeUnknown, match="broke before it answered"):
            await call
        await until(lambda: len(a.tasks) == before - 2)  # the call itself, and the one that kept the link dialled
        assert "c" not in counters("a")
        with pytest.raises(NotProposed, match="c cannot be reached from a"):
            await a.network.call("c", "any", b"", PATIENCE_S)
        a.network.send(heartbeat("a", "c"))
        assert "c" not in counters("a")


async def test_a_member_that_asks_for_its_own_removal_gets_the_answer_and_is_not_listened_to_any_more() -> None:
    async with trio() as (built, a, _b, c):

        async def remove(_method: str, _payload: bytes) -> bytes:
            a.network.set_members(voters(built, "ab", removed="c"))
            c.network.send(heartbeat("c", "a"))
            return b"removed"

        a.receiver.handler = remove
        assert await c.network.call("a", "remove me", b"", PATIENCE_S) == b"removed"
        await until(lambda: all(link.peer != "c" for link in a.links if link.is_ready))
        assert a.receiver.messages.empty()


async def test_a_member_that_was_removed_is_hung_up_on_though_its_call_is_never_answered() -> None:
    async with trio() as (built, a, _b, c):

        async def never(_method: str, _payload: bytes) -> bytes:
            a.network.set_members(voters(built, "ab", removed="c"))
            await asyncio.Event().wait()
            return b""

        a.receiver.handler = never
        with pytest.raises(OutcomeUnknown, match="broke before it answered"):
            await c.network.call("a", "any", b"", PATIENCE_S)


async def test_members_may_change_while_a_message_of_theirs_is_taken_in() -> None:
    """A configuration is in force as soon as the entry that holds it is here, and it comes in a message."""
    async with trio() as (built, a, b, c):

        def remove_sender(message: Message) -> None:
            a.network.set_members(voters(built, "ab", removed=message.sender))

        a.receiver.on_each = remove_sender
        c.network.send(heartbeat("c", "a", 1))
        c.network.send(heartbeat("c", "a", 2))
        assert (await a.receiver.next()).term == 1
        async with asyncio.timeout(PATIENCE_S):
            assert await c.receiver.removed_by.get() == "a"
        assert a.receiver.messages.empty()
        a.receiver.on_each = None
        b.network.send(heartbeat("b", "a", 3))
        assert (await a.receiver.next()).term == 3


async def test_a_member_that_is_told_may_drop_who_told_it() -> None:
    """The task that dials ends itself then."""
    async with trio() as (built, a, _b, c):
        told = asyncio.Event()

        def leave(_by: str) -> None:
            c.network.set_members(voters(built, "bc"))
            told.set()

        c.receiver.on_removed = leave  # type: ignore[method-assign]
        a.network.set_members(voters(built, "ab", removed="c"))
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
        await until(lambda: len(c.tasks) == 1)
        assert c.network.connected() == ["b"]


async def test_until_a_configuration_is_known_the_members_of_the_settings_are_the_members() -> None:
    async with town("ab") as built:
        a, b = built.make("a"), built.make("b")
        a.network.set_members(Membership())
        await a.network.start(a.receiver)
        await b.network.start(b.receiver)
        await a.up("b")
        await b.up("a")
        a.network.set_members(Membership((Member("a"), Member("z")), ()))
        assert a.network.connected() == []
        await until(lambda: "b" in a.network._peers and a.network._peers["b"].is_guest)


async def test_an_address_of_the_settings_wins_over_the_one_of_the_membership() -> None:
    async with town("ab") as built:
        nowhere = open_listener(LOOPBACK, "nowhere")
        try:
            a, b = await built.start("a"), await built.start("b")
            moved = Membership.of_voters({"a": "", "b": str(bound_address(nowhere))})
            await a.up("b")
            link = a.link_to("b")
            a.network.set_members(moved)
            assert a.link_to("b") is link
            b.network.set_members(moved)
            await b.up("a")
        finally:
            nowhere.close()


async def test_a_member_whose_address_changes_is_dialled_there() -> None:
    async with town("abc") as built:
        a = await built.start("a", peers={})
        # The address that b is said to have is one of c's, which refuses to be called b.
        a.network.set_members(Membership.of_voters({"a": "", "b": str(built.addresses["c"])}))
        c = await built.start("c")
        with capture_logs() as logs:
            await until(lambda: any("'b' was called at the address of 'c'" in str(e.get("reason")) for e in logs))
        b = await built.start("b")
        a.network.set_members(voters(built, "ab"))
        await a.up("b")
        a.network.send(heartbeat("a", "b"))
        assert (await b.receiver.next()).sender == "a"
        assert c.receiver.messages.empty()


@pytest.mark.parametrize("address", ["", "nonsense", "a..b:80", "x" * 300 + ":80", "no-such-host.invalid:80"])
async def test_a_member_with_an_address_that_is_none_may_call_and_hurts_nobody(address: str) -> None:
    async with town("abz") as built:
        failures: list[BaseException] = []
        a, b = built.make("a", peers={}), await built.start("b")
        a.tasks._on_failure = failures.append
        members = (Member("a"), Member("b", str(built.addresses["b"])), Member("z", address))
        a.network.set_members(Membership(members))
        await a.network.start(a.receiver)
        await a.up("b")
        await b.up("a")
        async with proven_connection(a, "z", "a") as raw:
            await raw.tell(b"c", b"\x94\x01\xa4ping\xc4\x00\xcb\x40\x34\x00\x00\x00\x00\x00\x00")
            assert await raw.hear_sealed() == (b"a", b"\x92\x01\xc4\x0b" + b"ping of z: ")
        b.network.send(heartbeat("b", "a"))
        assert (await a.receiver.next()).sender == "b"
        assert failures == []


async def test_changes_after_the_end_are_ignored() -> None:
    async with town("abc") as built:
        a = await built.start("a", peers={})
        await a.close()
        a.network.set_members(voters(built, "abc"))
        assert a.links == []
        assert len(a.tasks) == 0


async def test_members_that_come_and_go_many_times_leave_nothing_behind() -> None:
    async with trio() as (built, a, _b, _c):
        for _ in range(200):
            a.network.set_members(voters(built, "ab"))
            a.network.set_members(voters(built, "abc"))
        await a.up("c")
        await until(lambda: len(a.tasks) == 2 and len(a.links) <= 4)
        a.network.set_members(voters(built, "ab", removed="c"))
        await until(lambda: len(a.tasks) == 1 and all(link.peer != "c" for link in a.links if link.is_ready))
