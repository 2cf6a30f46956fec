"""Length-prefixed frames: a 4-byte big-endian payload length, then the payload. Bounded, no payload is trusted.

The payload is whatever the caller encodes (peers use msgpack by msgspec); framing knows only sizes.
"""

from collections.abc import Iterator

from quorate_core.errors import InvalidRequest

HEADER_BYTES = 4
FRAME_BYTES_MAX = 64 * 1024 * 1024


class FrameTooLarge(InvalidRequest):
    """A frame over the limit was announced or offered."""


def encode_frame(payload: bytes, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """`payload` with its length in front. Raises FrameTooLarge over `frame_bytes_max` bytes."""
    if len(payload) > frame_bytes_max:
        raise FrameTooLarge(f"a frame of {len(payload)} bytes is over the limit of {frame_bytes_max}")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameDecoder:
    """Bytes in as they arrive, whole payloads out. Memory is bounded by one frame and what was just fed."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Payloads completed by `data`. Raises FrameTooLarge as soon as a header announces too much."""
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= HEADER_BYTES:
                size = int.from_bytes(self._buffer[offset : offset + HEADER_BYTES], "big")
                if size > self._frame_bytes_max:
                    raise FrameTooLarge(f"a frame of {size} bytes was announced; the limit is {self._frame_bytes_max}")
                end = offset + HEADER_BYTES + size
                if len(self._buffer) < end:
                    return
                payload = bytes(self._buffer[offset + HEADER_BYTES : end])
                offset = end
                yield payload
        finally:
            del self._buffer[:offset]

    @property
    def pending_bytes(self) -> int:
        """Bytes held of a frame that is not complete yet."""
        return len(self._buffer)
