"""The messages of a stream's body: JSON objects one after the other, with any white space between them. Pure.

A body comes in chunks that begin and end anywhere. Where an object ends is found by its braces and strings alone; what
is in it is the decoder's business. A message is bounded, a body is not.
"""

import re
from collections.abc import AsyncIterator, Iterator

from quorate_core.errors import InvalidRequest, PayloadTooLarge

MESSAGE_BYTES_MAX = 3 * 1024 * 1024
"""A key of 1.5 MiB in base64 has room."""

_SPACE = re.compile(rb"[ \t\r\n]*")
_MARK_OUTSIDE_STRING = re.compile(rb'["{}\[\]]')
_MARK_IN_STRING = re.compile(rb'["\\]')


class JsonMessages:
    """Cuts a body into its messages. Between messages: `_depth` is 0, and nothing is kept."""

    def __init__(self, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._message_bytes_max = message_bytes_max
        self._kept = bytearray()
        """The message that is not complete yet, from its first brace on."""
        self._looked_at = 0
        """How much of what is kept has been looked at."""
        self._depth = 0
        self._is_in_string = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The messages that `chunk` completes, to be taken before the next chunk. Raises InvalidRequest for what is no
        object, and PayloadTooLarge, when it comes to that."""
        self._kept += chunk
        while self._skip_to_message():
            end = self._find_end()
            if end is None:
                break
            yield self._take(end)
        self._require_bounded(len(self._kept))

    def require_complete(self) -> None:
        """Raises InvalidRequest when the body has ended within a message."""
        if self._kept:
            raise InvalidRequest("unexpected EOF")

    def _skip_to_message(self) -> bool:
        """Whether something of a message is there."""
        if self._depth == 0:
            space = _SPACE.match(self._kept)
            del self._kept[: space.end() if space is not None else 0]
            if self._kept and self._kept[0] not in b"{[":  # a list is the decoder's to refuse
                character = bytes(self._kept[:1]).decode("latin-1")
                raise InvalidRequest(f"invalid character {character!r} looking for beginning of value")
        return bool(self._kept)

    def _find_end(self) -> int | None:
        """Where the message ends; None when that has not come yet."""
        while True:
            marks = _MARK_IN_STRING if self._is_in_string else _MARK_OUTSIDE_STRING
            mark = marks.search(self._kept, self._looked_at)
            if mark is None:
                self._looked_at = len(self._kept)
                return None
            if mark[0] == b"\\":
                if mark.end() == len(self._kept):
                    self._looked_at = mark.start()  # what it escapes has not come yet
                    return None
                self._looked_at = mark.end() + 1
                continue
            self._looked_at = mark.end()
            if mark[0] == b'"':
                self._is_in_string = not self._is_in_string
            else:
                self._depth += 1 if mark[0] in b"{[" else -1
                if self._depth == 0:
                    return mark.end()

    def _take(self, end: int) -> bytes:
        self._require_bounded(end)
        message = bytes(self._kept[:end])
        del self._kept[:end]
        self._looked_at = 0
        return message

    def _require_bounded(self, size_bytes: int) -> None:
        if size_bytes > self._message_bytes_max:
            raise PayloadTooLarge(f"a message is over the limit of {self._message_bytes_max} bytes")


async def json_messages(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The messages of `body`, as soon as each is complete. Raises InvalidRequest and PayloadTooLarge."""
    messages = JsonMessages()
    async for chunk in body:
        for message in messages.feed(chunk):
            yield message
    messages.require_complete()
