"""Snapshots between members: one file, on a connection of its own.

    sender                           receiver
      OFFER(SnapshotOffer)    ->       may answer at any time from here on, and then throws away what still comes
      CHUNK, CHUNK, …         ->
                              <-     STILL_BUSY, now and then, while it gets on
                              <-     TAKEN_OVER, or NOT_TAKEN_OVER(problem)
      hangs up

Every chunk has CHUNK_BYTES bytes but the last, which has what is left of the size that was offered; so the number of
chunks and what they take are known before. Nothing bounds the whole, for a snapshot may be large and a disk slow; what
is bounded is silence: a side that sees nothing move for so long ends the connection, and once everything was sent, the
receiver has a while to finish. Both ends hold at most a few chunks: the sender reads its file as the connection takes
it, and the receiver stops reading from the connection while its own work is behind.

NB: the receiver does not hang up when it has answered. What the sender had sent meanwhile would be answered by a reset,
and a reset can overtake the answer. The sender hangs up, and the receiver only when it does not.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog
from quorate_core.errors import InvalidRequest, QuorateError, TooManyRequests, Unavailable
from quorate_core.tasks import TaskOwner

from quorate_raft.core.messages import MemberName
from quorate_raft.runtime.link import Link, LinkLimits, LinkLost
from quorate_raft.runtime.ports import PeerReceiver, ReadPart, SnapshotOffer
from quorate_raft.runtime.wire import (
    CHUNK,
    NOT_TAKEN_OVER,
    OFFER,
    STILL_BUSY,
    TAKEN_OVER,
    decode_offer,
    decode_problem,
    encode,
    encode_problem,
)

CHUNK_BYTES = 256 * 1024
STREAM_FRAME_BYTES_MAX = CHUNK_BYTES + 64
SENT_BYTES_MAX = 512 * 1024
"""The sender reads on when less than this waits to leave: with the chunk that it adds, under 1 MiB."""
RECEIVED_BYTES_MAX = 1024 * 1024
"""The receiver stops reading from the connection when so much waits for its disk. What the loop had read already, at
most a chunk or two, comes on top."""
BUSY_NOTES = 4
"""STILL_BUSY is said so many times within the time of silence that ends a connection."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """`silence_s`: how long nothing may move; `finish_s`: how long the receiver may take once everything was sent,
    which is mostly to write to its disk what its kernel still holds; `linger_s`: how long the sender may take to hang
    up once it has its answer."""

    silence_s: float = 10.0
    finish_s: float = 120.0
    linger_s: float = 3.0


STREAM_TIMES = StreamTimes()


def stream_limits(handshake_timeout_s: float) -> LinkLimits:
    return LinkLimits(STREAM_FRAME_BYTES_MAX, SENT_BYTES_MAX + 2 * STREAM_FRAME_BYTES_MAX, handshake_timeout_s)


class SnapshotSender:
    """Make it in the link's `on_ready`; `run` it once. It ends the link, however it ends."""

    def __init__(self, link: Link, times: StreamTimes) -> None:
        self._link = link
        self._times = times
        self._patience: asyncio.Timeout | None = None
        self._finish_by_s = 0.0
        self._answer: asyncio.Future[QuorateError | None] = asyncio.get_running_loop().create_future()
        link.attach(self._on_frame, self._on_lost)
        link.limit_writes(SENT_BYTES_MAX)

    async def run(self, offer: SnapshotOffer, read: ReadPart) -> None:
        """Returns when the receiver has taken the snapshot over. Raises the receiver's error, Unavailable when it has
        fallen silent, LinkLost, and what `read` raises."""
        try:
            await self._send(offer, read)
            await self._wait_for_answer()
        finally:
            self._link.abort("the snapshot's stream is over")
        error = self._answer.result()
        if error is not None:
            raise error

    async def _send(self, offer: SnapshotOffer, read: ReadPart) -> None:
        link, offset = self._link, 0
        link.send(OFFER, encode(offer))
        while offset < offer.size_bytes and not self._answer.done():
            wanted_bytes = min(CHUNK_BYTES, offer.size_bytes - offset)
            try:
                async with asyncio.timeout(self._times.silence_s):
                    chunk = await read(offset, wanted_bytes)
                    await link.writable()
            except TimeoutError as error:
                raise self._silence(f"after {offset} of {offer.size_bytes} bytes") from error
            if len(chunk) != wanted_bytes:
                raise Unavailable(
                    f"the snapshot has {offset + len(chunk)} bytes, and not the {offer.size_bytes} offered"
                )
            if not link.send(CHUNK, chunk):
                return  # the link has ended, which is an answer too
            offset += wanted_bytes

    async def _wait_for_answer(self) -> None:
        self._finish_by_s = asyncio.get_running_loop().time() + self._times.finish_s
        try:
            async with asyncio.timeout(self._times.silence_s) as self._patience:
                await asyncio.wait({self._answer})
        except TimeoutError as error:
            raise self._silence("after all was sent") from error
        finally:
            self._patience = None

    def _silence(self, when: str) -> Unavailable:
        return Unavailable(
            f"the snapshot for {self._link.peer} did not get on for {self._times.silence_s:.3g} s, {when}"
        )

    def _on_frame(self, kind: bytes, body: memoryview) -> None:
        if kind == STILL_BUSY:
            if self._patience is not None and not self._patience.expired():
                now_s = asyncio.get_running_loop().time()
                self._patience.reschedule(min(now_s + self._times.silence_s, self._finish_by_s))
        elif kind == TAKEN_OVER:
            self._settle(None)
        elif kind == NOT_TAKEN_OVER:
            self._settle(decode_problem(body))
        else:
            raise InvalidRequest(f"frames of kind {kind!r} do not come this way")

    def _settle(self, answer: QuorateError | None) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)
        self._link.abort("the snapshot was answered")

    def _on_lost(self) -> None:
        if not self._answer.done():
            self._answer.set_result(
                LinkLost(f"the snapshot's connection to {self._link.peer} ended: {self._link.end_reason}")
            )


class IncomingChunks(AsyncIterator[bytes]):
    """The file as it comes. Raises LinkLost when the connection ends before it is whole, or nothing comes for long."""

    def __init__(self, link: Link, size_bytes: int, silence_s: float) -> None:
        self._link = link
        self._size_bytes = size_bytes
        self._silence_s = silence_s
        self._queue: deque[bytes] = deque()
        self._stirred = asyncio.Event()
        self._failure: LinkLost | None = None
        self.received_bytes = 0
        self.taken_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self.received_bytes - self.taken_bytes

    @property
    def have_all_come(self) -> bool:
        return self.received_bytes == self._size_bytes

    def push(self, chunk: bytes) -> None:
        """Raises InvalidRequest when it is not the chunk that is due."""
        due_bytes = min(CHUNK_BYTES, self._size_bytes - self.received_bytes)
        if len(chunk) != due_bytes or not chunk:
            raise InvalidRequest(
                f"a chunk of {len(chunk)} bytes came after {self.received_bytes} of the {self._size_bytes} that were "
                f"offered, and {due_bytes} were due"
            )
        self._queue.append(chunk)
        self.received_bytes += len(chunk)
        if self.held_bytes >= RECEIVED_BYTES_MAX:
            self._link.pause_reading()
        self._stirred.set()

    def fail(self, failure: LinkLost) -> None:
        self._failure = self._failure or failure
        if not self.have_all_come:
            self._queue.clear()
            self.received_bytes = self.taken_bytes
        self._stirred.set()

    async def __anext__(self) -> bytes:
        while not self._queue:
            if self.taken_bytes == self._size_bytes:
                raise StopAsyncIteration
            if self._failure is not None:
                raise self._failure
            self._stirred.clear()
            try:
                async with asyncio.timeout(self._silence_s):
                    await self._stirred.wait()
            except TimeoutError as error:
                raise LinkLost(f"nothing of the snapshot came for {self._silence_s:.3g} s") from error
        chunk = self._queue.popleft()
        self.taken_bytes += len(chunk)
        if self.held_bytes <= RECEIVED_BYTES_MAX // 2:
            self._link.resume_reading()
        return chunk


class SnapshotDesk:
    """Where snapshots come in: one at a time, from whichever peer."""

    def __init__(self, own: MemberName, receiver: PeerReceiver, tasks: TaskOwner, times: StreamTimes) -> None:
        self.own = own
        self.receiver = receiver
        self.times = times
        self._owner = tasks
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    def take(self, incoming: "IncomingSnapshot", offer: SnapshotOffer, chunks: IncomingChunks) -> None:
        self._task = self._owner.start(self._take(incoming, offer, chunks), f"snapshot from {incoming.peer}")

    def cancel(self) -> list["asyncio.Task[None]"]:
        """What was still under way, and ends now."""
        tasks = [] if self._task is None else [self._task]
        for task in tasks:
            task.cancel()
        return tasks

    async def _take(self, incoming: "IncomingSnapshot", offer: SnapshotOffer, chunks: IncomingChunks) -> None:
        result: QuorateError | None = None
        try:
            await self.receiver.on_snapshot(incoming.peer, offer, chunks)
        except QuorateError as error:
            result = error
        except asyncio.CancelledError:
            incoming.abort("the member is closing")
            raise
        except Exception:
            log.exception("snapshot_failed", member=self.own, peer=incoming.peer)
            result = QuorateError(f"{self.own} could not take the snapshot over; its log says why")
        finally:
            self._task = None
        incoming.answer(result)


class IncomingSnapshot:
    """One connection on which a peer sends a snapshot: waits for its offer, passes its chunks on, answers. Make it in
    the link's `on_ready`."""

    def __init__(self, link: Link, desk: SnapshotDesk, on_lost: Callable[[], None]) -> None:
        self._link = link
        self._desk = desk
        self._on_ended = on_lost
        self._chunks: IncomingChunks | None = None
        self._is_answered = False
        self._noted_bytes = 0
        self._timer = self._in(desk.times.silence_s, self._on_no_offer)
        link.attach(self._on_frame, self._on_lost, stream_limits(desk.times.silence_s))

    @property
    def peer(self) -> MemberName:
        return self._link.peer

    @property
    def held_bytes(self) -> int:
        """What waits here to be taken."""
        return 0 if self._chunks is None else self._chunks.held_bytes

    def answer(self, error: QuorateError | None) -> None:
        self._is_answered = True
        self._timer.cancel()
        if error is None:
            self._link.send(TAKEN_OVER, b"")
        else:
            self._link.send(NOT_TAKEN_OVER, encode_problem(error))
        if self._link.is_ready:
            self._link.resume_reading()
            self._timer = self._in(self._desk.times.linger_s, self._on_lingered)

    def abort(self, reason: str) -> None:
        self._link.abort(reason)

    def _in(self, delay_s: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, work)

    def _on_frame(self, kind: bytes, body: memoryview) -> None:
        if self._is_answered:
            return
        if kind == OFFER and self._chunks is None:
            self._on_offer(decode_offer(body))
        elif kind == CHUNK and self._chunks is not None:
            self._chunks.push(bytes(body))
        else:
            raise InvalidRequest(f"a frame of kind {kind!r} does not come now")

    def _on_offer(self, offer: SnapshotOffer) -> None:
        self._timer.cancel()
        if self._desk.is_busy:
            self.answer(TooManyRequests(f"{self._desk.own} is taking another snapshot over; try again"))
            return
        self._chunks = IncomingChunks(self._link, offer.size_bytes, self._desk.times.silence_s)
        self._timer = self._in(self._desk.times.silence_s / BUSY_NOTES, self._note_progress)
        self._desk.take(self, offer, self._chunks)

    def _note_progress(self) -> None:
        """Say so if this member gets on, though the connection may not show it: what was sent can wait here long."""
        chunks = self._chunks
        if chunks is not None and (chunks.have_all_come or chunks.taken_bytes > self._noted_bytes):
            self._noted_bytes = chunks.taken_bytes
            self._link.send(STILL_BUSY, b"")
        self._timer = self._in(self._desk.times.silence_s / BUSY_NOTES, self._note_progress)

    def _on_no_offer(self) -> None:
        self._link.abort("no snapshot was offered")

    def _on_lingered(self) -> None:
        self._link.abort("the snapshot was answered, and the peer did not hang up")

    def _on_lost(self) -> None:
        self._timer.cancel()
        if self._chunks is not None:
            self._chunks.fail(LinkLost(f"the snapshot's connection from {self.peer} ended: {self._link.end_reason}"))
        self._on_ended()
