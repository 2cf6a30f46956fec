"""Heads as they leave the gateway: what a route and the policies change in the one that came."""

import random
from binascii import hexlify
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING

from quorate_gateway.proxy.framing import CHUNKED, RequestHead, ResponseHead, without_transfer_encoding

if TYPE_CHECKING:
    from quorate_gateway.matching import CompiledRoute


IDS_DRAWN = 64
"""Traces and request ids that are drawn together."""
_drawn: list[tuple[bytes, bytes]] = []


def encode_request_head(
    head: RequestHead, route: "CompiledRoute", forwarded: bytes, request_fields: bytes
) -> tuple[bytes, bytes]:
    """The head that is sent upstream, whole, and the request's id. `forwarded` and `request_fields` are fields to add,
    each with its CRLF in front."""
    method, target, _path, _minor, fields, _end = head
    rewrite, changes = route.rewrite, route.request_changes
    if rewrite is not None:
        target = rewrite(target)
    block = fields.forward if changes is None else changes(fields.forward)
    trace, request_id = fields.traceparent, fields.request_id
    if not trace or not request_id:
        if not _drawn:
            _draw_ids()
        drawn_trace, drawn_id = _drawn.pop()
        trace, request_id = trace or drawn_trace, request_id or drawn_id
    encoded = b"%b %b HTTP/1.1%b%b%b\r\nx-request-id: %b\r\ntraceparent: %b\r\n\r\n" % (
        method, target, block, forwarded, request_fields, request_id, trace,
    )  # fmt: skip
    return encoded, request_id


def _draw_ids() -> None:
    """Many at once, which takes a third of the time."""
    digits = hexlify(random.getrandbits(256 * IDS_DRAWN).to_bytes(32 * IDS_DRAWN, "big"))
    _drawn.extend(
        (b"00-" + digits[at : at + 32] + b"-" + digits[at + 32 : at + 48] + b"-00", digits[at + 48 : at + 64])
        for at in range(0, 64 * IDS_DRAWN, 64)
    )


def with_time_left(encoded: bytes, left_ms: int) -> bytes:
    """A request head that also says for how long the caller still waits."""
    return b"%bx-request-timeout-ms: %d\r\n\r\n" % (encoded[:-2], left_ms)


@lru_cache(maxsize=1)
def date_field(second: int) -> bytes:
    """For an answer that came without one, which must not be passed on so (RFC 9110, section 6.6.1). `second`: of wall
    time."""
    return b"\r\ndate: " + formatdate(second, usegmt=True).encode()


def encode_answer_head(
    response: ResponseHead, route: "CompiledRoute", answer_fields: bytes, *, to_old_client: bool, keeps_alive: bool,
    wall_s: Callable[[], float],
) -> bytes:  # fmt: skip
    """The head that is sent to the client, whole. `to_old_client`: it speaks HTTP/1.0."""
    block = response.forward if response.has_date else response.forward + date_field(int(wall_s()))
    if route.response_changes is not None:
        block = route.response_changes(block)
    if to_old_client and response.length == CHUNKED:
        block = without_transfer_encoding(block)
    if not keeps_alive:
        block += b"\r\nconnection: close"
    elif to_old_client:
        block += b"\r\nconnection: keep-alive"
    return b"%b%b%b\r\n\r\n" % (response.line, block, answer_fields)
