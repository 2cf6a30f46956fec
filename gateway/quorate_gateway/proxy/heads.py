"""Heads as they leave the gateway: what a route and the policies change in the one that came."""

import random
from binascii import hexlify
from typing import TYPE_CHECKING

from quorate_gateway.proxy.framing import CHUNKED, RequestHead, ResponseHead, without_transfer_encoding

if TYPE_CHECKING:
    from quorate_gateway.matching import CompiledRoute


def encode_request_head(
    head: RequestHead, route: "CompiledRoute", forwarded: bytes, request_fields: bytes
) -> tuple[bytes, bytes]:
    """The head that is sent upstream, whole, and the request's id. `forwarded` and `request_fields` are fields to add,
    each with its CRLF in front."""
    fields = head.fields
    rewrite, changes = route.rewrite, route.request_changes
    target = head.target if rewrite is None else rewrite(head.target)
    block = fields.forward if changes is None else changes(fields.forward)
    trace, request_id = fields.traceparent, fields.request_id
    if not trace or not request_id:
        chance = hexlify(random.getrandbits(256).to_bytes(32, "big"))  # the quickest way to 64 digits
        trace = trace or b"00-%b-%b-00" % (chance[:32], chance[32:48])
        request_id = request_id or chance[48:]
    encoded = b"%b %b HTTP/1.1%b%b%b\r\nx-request-id: %b\r\ntraceparent: %b\r\n\r\n" % (
        head.method, target, block, forwarded, request_fields, request_id, trace,
    )  # fmt: skip
    return encoded, request_id


def with_time_left(encoded: bytes, left_ms: int) -> bytes:
    """A request head that also says for how long the caller still waits."""
    return b"%bx-request-timeout-ms: %d\r\n\r\n" % (encoded[:-2], left_ms)


def encode_answer_head(
    response: ResponseHead, route: "CompiledRoute", answer_fields: bytes, *, to_old_client: bool, keeps_alive: bool
) -> bytes:
    """The head that is sent to the client, whole. `to_old_client`: it speaks HTTP/1.0."""
    block = response.forward
    if route.response_changes is not None:
        block = route.response_changes(block)
    if to_old_client and response.length == CHUNKED:
        block = without_transfer_encoding(block)
    if not keeps_alive:
        block += b"\r\nconnection: close"
    elif to_old_client:
        block += b"\r\nconnection: keep-alive"
    return b"%b%b%b\r\n\r\n" % (response.line, block, answer_fields)
