"""The network between the machines: links that are slow, lossy or cut, and each process's end of them.

Theory of operation. Each process keeps a connection to every other member dialled, as the real transport does: on the
connection from A to B go A's messages, A's calls, and B's answers. A connection comes up when both directions are open,
B's process lives, and B does not know that A was removed (who is proven, and not known as a member yet, is dialled back
as a guest); it breaks when a process ends, when a direction is cut for longer than TCP
is patient, or when a frame is damaged, for its checksum tells. What is in flight then is lost.

What becomes of a frame is decided by the model of its direction (`LinkModel`): *reliable* delivers all, late; *fair
loss* drops some; *arbitrary* also repeats and reorders messages, delivers some after their connection has broken, and
damages frames. Calls are never repeated: a connection does not do that, and those who call rely on it. Messages are
encoded and decoded as on a real connection.

A snapshot has a connection of its own, chunk by chunk, and that can break anywhere.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from quorate_core.errors import InvalidRequest, NotProposed, OutcomeUnknown, QuorateError, Unavailable
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import MemberName, Message
from quorate_raft.runtime.link import LinkLost
from quorate_raft.runtime.ports import PeerReceiver, ReadPart, SnapshotOffer
from quorate_raft.runtime.wire import decode_message, decode_problem, encode, encode_problem

from quorate_simulation.loop import SimulatedLoop, SimulatedProcess
from quorate_simulation.randomness import Stream

CHUNK_BYTES = 8 * 1024
"""Of a snapshot. Smaller than the real one, as the states here are, so that a stream has a middle to break in."""
CHUNKS_IN_FLIGHT_MAX = 4
PATIENCE_S = 2.0
"""How long TCP goes on without an acknowledgement."""
DIAL_BACKOFF_S_MIN = 0.05
DIAL_BACKOFF_S_MAX = 0.5
CALL_TIMEOUT_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class LinkModel:
    """How one direction treats a frame. Probabilities are for each frame."""

    name: str
    delay_s_min: float = 0.0001
    delay_s_max: float = 0.003
    lost: float = 0.0
    repeated: float = 0.0
    reordered: float = 0.0
    damaged: float = 0.0
    outlives: float = 0.0
    """Delivered though its connection has broken meanwhile."""


RELIABLE = LinkModel("reliable")
FAIR_LOSS = LinkModel("fair loss", delay_s_max=0.02, lost=0.03)
ARBITRARY = LinkModel(
    "arbitrary", delay_s_max=0.05, lost=0.02, repeated=0.05, reordered=0.2, damaged=0.0005, outlives=0.5
)
SLOW = LinkModel("slow", delay_s_min=0.03, delay_s_max=0.2)


class Watcher(Protocol):
    """Who looks on."""

    def on_sent(self, process: SimulatedProcess, message: Message) -> None:
        """Called before anything becomes of the message: what it promises must be true now."""
        ...

    def on_delivered(self, message: Message) -> None: ...
    def on_broken(self, dialler: MemberName, to: MemberName, reason: str) -> None: ...
    def on_failure(self, process: SimulatedProcess, error: Exception) -> None:
        """A handler of the process raised what it must never raise."""
        ...


@dataclass(slots=True, eq=False)
class Connection:
    """From `dialler` to `acceptor`; `is_up` never comes back."""

    dialler: "SimulatedNetwork"
    acceptor: "SimulatedNetwork"
    is_up: bool = True
    calls: dict[int, "asyncio.Future[bytes | QuorateError]"] = field(default_factory=dict)
    streams: "list[SnapshotStream]" = field(default_factory=list)
    last_arrival_s: dict[MemberName, float] = field(default_factory=dict)
    """By receiver: nothing overtakes on a connection that does not reorder."""


class Fabric:
    """All links of one run."""

    def __init__(self, loop: SimulatedLoop, chance: Stream, watcher: Watcher) -> None:
        self.loop = loop
        self.chance = chance
        self.watcher = watcher
        self.model = RELIABLE
        self._models: dict[tuple[MemberName, MemberName], LinkModel] = {}
        self._cut: dict[tuple[MemberName, MemberName], int] = {}
        self.networks: dict[MemberName, SimulatedNetwork] = {}
        """Of processes that live and have started."""
        self._connections: dict[Connection, None] = {}

    def open_connection(self, dialler: "SimulatedNetwork", acceptor: "SimulatedNetwork") -> Connection:
        connection = Connection(dialler, acceptor)
        self._connections[connection] = None
        return connection

    def model_of(self, sender: MemberName, to: MemberName) -> LinkModel:
        return self._models.get((sender, to), self.model)

    def set_model(self, sender: MemberName, to: MemberName, model: LinkModel) -> None:
        self._models[sender, to] = model

    def cut(self, sender: MemberName, to: MemberName) -> None:
        """Nothing that `sender` sends reaches `to` any more. Cuts add up: each wants its `mend`."""
        self._cut[sender, to] = self._cut.get((sender, to), 0) + 1
        self.loop.later(PATIENCE_S, self._lose_patience, sender, to)

    def mend(self, sender: MemberName, to: MemberName) -> None:
        self._cut[sender, to] -= 1

    def heal(self) -> None:
        """All links are whole and reliable from now on."""
        self.model = RELIABLE
        self._models.clear()
        self._cut.clear()

    def is_cut(self, sender: MemberName, to: MemberName) -> bool:
        return self._cut.get((sender, to), 0) > 0

    def is_open(self, one: MemberName, other: MemberName) -> bool:
        return not self.is_cut(one, other) and not self.is_cut(other, one)

    def deliver(
        self, connection: Connection, sender: MemberName, to: MemberName, arrive: Callable[[], None], *, is_call: bool
    ) -> None:
        """Carry a frame, or lose it. `arrive` is called in nobody's name, when it is there."""
        model, chance = self.model_of(sender, to), self.chance
        if self.is_cut(sender, to) or chance.happens(model.lost):
            return
        if chance.happens(model.damaged):
            self.loop.later(self._delay_s(model), self.break_connection, connection, "a frame was damaged")
            return
        outlives = not is_call and chance.happens(model.outlives)
        copies = 2 if not is_call and chance.happens(model.repeated) else 1
        for _ in range(copies):
            at_s = self.loop.true_time_s + self._delay_s(model)
            if not chance.happens(model.reordered):
                at_s = max(at_s, connection.last_arrival_s.get(to, 0.0))
                connection.last_arrival_s[to] = at_s
            self.loop.later(at_s - self.loop.true_time_s, self._arrive, connection, sender, to, arrive, outlives)

    def break_connection(self, connection: Connection, reason: str) -> None:
        if not connection.is_up:
            return
        connection.is_up = False
        del self._connections[connection]
        self.watcher.on_broken(connection.dialler.name, connection.acceptor.name, reason)
        connection.dialler.process.call(connection.dialler.on_connection_lost, connection)
        for stream in connection.streams:
            stream.break_off(reason)

    def remove(self, network: "SimulatedNetwork", patience_s: float) -> None:
        """A process has ended: its peers notice after a while."""
        if self.networks.get(network.name) is network:
            del self.networks[network.name]
        for connection in list(self._connections):
            if network in (connection.dialler, connection.acceptor):
                self.loop.later(patience_s, self.break_connection, connection, f"{network.name} is gone")

    def break_between(self, one: MemberName, other: MemberName, reason: str) -> None:
        for connection in list(self._connections):
            if {connection.dialler.name, connection.acceptor.name} == {one, other}:
                self.break_connection(connection, reason)

    def delay_s(self, sender: MemberName, to: MemberName) -> float:
        return self._delay_s(self.model_of(sender, to))

    def _delay_s(self, model: LinkModel) -> float:
        return self.chance.skewed(model.delay_s_min, model.delay_s_max)

    def _arrive(
        self, connection: Connection, sender: MemberName, to: MemberName, arrive: Callable[[], None], outlives: bool
    ) -> None:
        # Only the other end of this very connection gets it, unless the network is one of those that repeat the past.
        is_held = connection.is_up and self.networks.get(connection.acceptor.name) is connection.acceptor
        if (is_held or outlives) and not self.is_cut(sender, to):
            arrive()

    def _lose_patience(self, sender: MemberName, to: MemberName) -> None:
        if self.is_cut(sender, to):
            self.break_between(sender, to, "nothing was acknowledged")


class SimulatedNetwork:
    """`quorate_raft.runtime.ports.Network` of one process. `seeds`: whom it knows of before it knows a membership."""

    def __init__(self, fabric: Fabric, process: SimulatedProcess, seeds: Sequence[MemberName]) -> None:
        self.fabric = fabric
        self.process = process
        self.name = process.name
        self._seeds = [name for name in seeds if name != self.name]
        self._peers: list[MemberName] = list(self._seeds)
        self.removed: tuple[MemberName, ...] = ()
        self._connections: dict[MemberName, Connection] = {}
        self._dialling: dict[MemberName, asyncio.TimerHandle] = {}
        self._serving: dict[asyncio.Task[Any], None] = {}
        self._next_call_id = 1
        self.receiver: PeerReceiver | None = None
        self._is_closed = False

    async def start(self, receiver: PeerReceiver) -> None:
        self.receiver = receiver
        self.fabric.networks[self.name] = self
        for peer in self._peers:
            self._dial_later(peer, 0)

    def set_members(self, membership: Membership) -> None:
        self.removed = membership.removed
        peers = list(self._seeds) if membership.is_empty else list(membership.others(self.name))
        for gone in [name for name in self._peers if name not in peers]:
            self._hang_up(gone)
        new = [name for name in peers if name not in self._peers]
        self._peers = peers
        if self.receiver is not None:
            for name in new:
                self._dial_later(name, 0)

    def send(self, message: Message) -> None:
        connection = self._connections.get(message.to)
        if connection is None or not connection.is_up or not self.process.is_alive:
            return
        fabric, sender, to = self.fabric, self.name, message.to
        fabric.watcher.on_sent(self.process, message)
        frame = encode(message)

        def arrive() -> None:
            network = fabric.networks.get(to)
            if network is not None and network.welcomes(sender):
                network.process.call(network.take_message, memoryview(frame), sender)

        fabric.deliver(connection, sender, to, arrive, is_call=False)

    async def call(self, to: MemberName, method: str, payload: bytes, timeout_s: float) -> bytes:
        connection = self._connections.get(to)
        if connection is None or not connection.is_up:
            raise NotProposed(f"{to} cannot be reached from {self.name} now; try again")
        call_id = self._next_call_id
        self._next_call_id += 1
        waiting: asyncio.Future[bytes | QuorateError] = asyncio.get_running_loop().create_future()
        connection.calls[call_id] = waiting
        acceptor = connection.acceptor

        def arrive() -> None:
            acceptor.process.call(acceptor.serve, connection, call_id, method, payload, timeout_s)

        self.fabric.deliver(connection, self.name, to, arrive, is_call=True)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await waiting
        except TimeoutError as error:
            raise OutcomeUnknown(f"{to} did not answer {method} within {timeout_s:.3g} s") from error
        finally:
            connection.calls.pop(call_id, None)
        if isinstance(answer, QuorateError):
            raise answer
        return answer

    async def send_snapshot(self, to: MemberName, offer: SnapshotOffer, read: ReadPart) -> None:
        fabric = self.fabric
        acceptor = fabric.networks.get(to)
        await _wait(2 * fabric.delay_s(self.name, to))
        if acceptor is None or not acceptor.process.is_alive or not fabric.is_open(self.name, to) or self._is_closed:
            raise LinkLost(f"{to} cannot be reached from {self.name} now")
        if not acceptor.welcomes(self.name):
            raise Unavailable(f"{to} says that {self.name} was removed")
        connection = fabric.open_connection(self, acceptor)
        stream = SnapshotStream(fabric, connection, offer)
        connection.streams.append(stream)
        acceptor.process.call(acceptor.take_stream, stream)
        try:
            await stream.run(read)
        finally:
            fabric.break_connection(connection, "the snapshot's connection is over")

    def connected(self) -> Sequence[MemberName]:
        return sorted(name for name, connection in self._connections.items() if connection.is_up)

    async def close(self) -> None:
        self._is_closed = True
        for timer in self._dialling.values():
            timer.cancel()
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.fabric.remove(self, self.fabric.chance.between(0.0, 0.01))

    def welcomes(self, name: MemberName) -> bool:
        return name not in self.removed

    def on_caller(self, name: MemberName) -> None:
        """Somebody who is proven has connected: a member, or one that this member does not know of yet."""
        if name not in self._peers:
            self._peers.append(name)
            self._dial_later(name, 0)

    def take_message(self, frame: memoryview, sender: MemberName) -> None:
        """A frame has come in, in this process."""
        receiver = self.receiver
        if receiver is None or self._is_closed:
            return
        try:
            message = decode_message(frame, sender, self.name)
        except InvalidRequest as error:
            raise AssertionError(f"{self.name} cannot read what {sender} sent: {error.detail}") from error
        self.fabric.watcher.on_delivered(message)
        receiver.on_message(message)

    def serve(self, connection: Connection, call_id: int, method: str, payload: bytes, timeout_s: float) -> None:
        if not self._is_closed:
            self._own(self._serve(connection, call_id, method, payload, timeout_s))

    def take_stream(self, stream: "SnapshotStream") -> None:
        if self._is_closed:
            stream.break_off(f"{self.name} is closing")
        else:
            self._own(self._take_stream(stream))

    def on_connection_lost(self, connection: Connection) -> None:
        """In this process, which had dialled it."""
        for waiting in list(connection.calls.values()):
            if not waiting.done():
                waiting.set_result(OutcomeUnknown(f"the link to {connection.acceptor.name} broke before it answered"))
        if self._connections.get(connection.acceptor.name) is connection:
            del self._connections[connection.acceptor.name]
            self._dial_later(connection.acceptor.name, 0)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.process.start(self._watch(work))
        self._serving[task] = None
        task.add_done_callback(self._serving.pop)

    async def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.fabric.watcher.on_failure(self.process, error)

    async def _serve(self, connection: Connection, call_id: int, method: str, payload: bytes, timeout_s: float) -> None:
        receiver = self.receiver
        if receiver is None:
            return
        answer: bytes | QuorateError
        try:
            async with asyncio.timeout(min(timeout_s, CALL_TIMEOUT_MAX_S)):
                answer = await receiver.on_call(connection.dialler.name, method, payload)
        except TimeoutError:
            return
        except QuorateError as error:
            answer = decode_problem(memoryview(encode_problem(error)))
        dialler = connection.dialler

        def arrive() -> None:
            dialler.process.call(_resolve, connection.calls.get(call_id), answer)

        self.fabric.deliver(connection, self.name, dialler.name, arrive, is_call=True)

    async def _take_stream(self, stream: "SnapshotStream") -> None:
        receiver = self.receiver
        if receiver is None:
            return
        answer: QuorateError | None = None
        try:
            await receiver.on_snapshot(stream.sender, stream.offer, stream.chunks())
        except QuorateError as error:
            answer = decode_problem(memoryview(encode_problem(error)))
        stream.answer(answer)

    def _hang_up(self, name: MemberName) -> None:
        timer = self._dialling.pop(name, None)
        if timer is not None:
            timer.cancel()
        self._connections.pop(name, None)
        self.fabric.break_between(self.name, name, f"{name} is gone from the configuration")

    def _dial_later(self, peer: MemberName, failures: int) -> None:
        if self._is_closed or peer not in self._peers:
            return
        chance = self.fabric.chance
        backoff_s = min(DIAL_BACKOFF_S_MAX, DIAL_BACKOFF_S_MIN * 2**failures) * chance.between(0.5, 1.0)
        delay_s = self.fabric.delay_s(self.name, peer) * 2 + (backoff_s if failures else 0.0)
        loop = asyncio.get_running_loop()
        self._dialling[peer] = loop.call_later(delay_s, self._dial, peer, failures)

    def _dial(self, peer: MemberName, failures: int) -> None:
        self._dialling.pop(peer, None)
        acceptor = self.fabric.networks.get(peer)
        if acceptor is None or acceptor.process.is_paused or not self.fabric.is_open(self.name, peer):
            self._dial_later(peer, min(failures + 1, 10))
            return
        if acceptor.welcomes(self.name):
            self._connections[peer] = self.fabric.open_connection(self, acceptor)
            acceptor.process.call(acceptor.on_caller, self.name)
            return
        if self.receiver is not None:
            self.receiver.on_removed(peer)
        self._dial_later(peer, min(failures + 1, 10))


class SnapshotStream:
    """One snapshot on its way: the sender's end and the receiver's."""

    def __init__(self, fabric: Fabric, connection: Connection, offer: SnapshotOffer) -> None:
        self.offer = offer
        self.sender = connection.dialler.name
        self._fabric = fabric
        self._connection = connection
        self._arrived: deque[bytes] = deque()
        self._in_flight = 0
        self._broken = ""
        self._answer: QuorateError | None = None
        self._is_answered = False
        self._sender_wakeup: asyncio.Future[None] | None = None
        self._receiver_wakeup: asyncio.Future[None] | None = None

    async def run(self, read: ReadPart) -> None:
        """The sender's end."""
        offset, size_bytes = 0, self.offer.size_bytes
        while not self._is_answered and not self._broken:
            if offset < size_bytes and self._in_flight < CHUNKS_IN_FLIGHT_MAX:
                chunk = await read(offset, min(CHUNK_BYTES, size_bytes - offset))
                offset += len(chunk)
                self._in_flight += 1
                self._carry(self._receiver_name, chunk)
            else:
                self._sender_wakeup = asyncio.get_running_loop().create_future()
                await self._sender_wakeup
        if not self._is_answered:
            raise LinkLost(self._broken)
        if self._answer is not None:
            raise self._answer

    async def chunks(self) -> AsyncIterator[bytes]:
        """The receiver's end."""
        received_bytes = 0
        while received_bytes < self.offer.size_bytes:
            if self._arrived:
                chunk = self._arrived.popleft()
                received_bytes += len(chunk)
                self._carry(self.sender, None)
                yield chunk
            elif self._broken:
                raise LinkLost(self._broken)
            else:
                self._receiver_wakeup = asyncio.get_running_loop().create_future()
                await self._receiver_wakeup

    def answer(self, answer: QuorateError | None) -> None:
        """The receiver's last word; None: taken over."""

        def arrive() -> None:
            self._answer, self._is_answered = answer, True
            self._wake_sender()

        self._send(self.sender, arrive)

    def break_off(self, reason: str) -> None:
        if not self._broken:
            self._broken = reason
            self._wake_sender()
            self._wake_receiver()

    @property
    def _receiver_name(self) -> MemberName:
        return self._connection.acceptor.name

    def _carry(self, to: MemberName, chunk: bytes | None) -> None:
        """A chunk to the receiver, or word to the sender that there is room for another."""

        def arrive() -> None:
            if chunk is None:
                self._in_flight -= 1
                self._wake_sender()
            else:
                self._arrived.append(chunk)
                self._wake_receiver()

        self._send(to, arrive)

    def _send(self, to: MemberName, arrive: Callable[[], None]) -> None:
        """A stream loses nothing: where a frame would be lost for good, the connection is."""
        sender = self.sender if to == self._receiver_name else self._receiver_name
        fabric = self._fabric
        model = fabric.model_of(sender, to)
        if fabric.is_cut(sender, to) or fabric.chance.happens(model.lost / 2 + model.damaged):
            fabric.loop.later(PATIENCE_S, fabric.break_connection, self._connection, "nothing was acknowledged")
            return
        at_s = fabric.loop.true_time_s + fabric.delay_s(sender, to)
        at_s = max(at_s, self._connection.last_arrival_s.get(to, 0.0))
        self._connection.last_arrival_s[to] = at_s
        fabric.loop.later(at_s - fabric.loop.true_time_s, arrive)

    def _wake_sender(self) -> None:
        self._connection.dialler.process.call(_resolve_wakeup, self._sender_wakeup)

    def _wake_receiver(self) -> None:
        self._connection.acceptor.process.call(_resolve_wakeup, self._receiver_wakeup)


async def _wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _resolve(waiting: "asyncio.Future[bytes | QuorateError] | None", answer: bytes | QuorateError) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(answer)


def _resolve_wakeup(wakeup: "asyncio.Future[None] | None") -> None:
    if wakeup is not None and not wakeup.done():
        with suppress(asyncio.InvalidStateError):
            wakeup.set_result(None)
