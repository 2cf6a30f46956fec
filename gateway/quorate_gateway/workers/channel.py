"""Frames over a socket pair, for both of its ends."""

import asyncio
import socket
from contextlib import suppress

from quorate_core.frames import FRAME_BYTES_MAX, HEADER_BYTES, FrameTooLarge, encode_frame


class Channel:
    """One end. What is sent is bounded by who sends: nothing more goes to a peer that has not answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        reader, writer = await asyncio.open_unix_connection(sock=end)
        writer.transport.set_write_buffer_limits(0)  # so that `flush` waits for everything
        return cls(reader, writer)

    def send(self, payload: bytes) -> None:
        """Of a peer that has gone, nothing is heard here; `receive` tells."""
        self._writer.write(encode_frame(payload))

    @property
    def is_idle(self) -> bool:
        """Whether the peer has taken everything that was sent."""
        return not self._writer.transport.get_write_buffer_size()

    async def flush(self) -> None:
        """Until the peer has taken everything that was sent, or has gone."""
        with suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> bytes | None:
        """The next payload; None when the peer has gone. Raises FrameTooLarge."""
        try:
            size = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
            if size > FRAME_BYTES_MAX:
                raise FrameTooLarge(f"a frame of {size} bytes was announced; the limit is {FRAME_BYTES_MAX}")
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        self._writer.close()
