"""Answers that the gateway makes itself: application/problem+json (RFC 9457) that names the rule which made it."""

import json
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple

from quorate_core.errors import PROBLEM_URN, Problem, Retry


class Refusal(Exception):
    """A request that is not passed on, or whose answer did not come.

    `rule` is the slug of the rule that decided, such as `no-route`; `status` is HTTP's; `detail` is for people.
    `retry_after_s` is told when `retry` is safe; `extensions` are further members of the problem (RFC 9457).
    """

    def __init__(
        self,
        rule: str,
        status: int,
        detail: str,
        retry: Retry = Retry.NEVER,
        fields: tuple[tuple[str, str], ...] = (),
        retry_after_s: int = 1,
        extensions: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        super().__init__(detail)
        self.rule = rule
        self.status = status
        self.detail = detail
        self.retry = retry
        self.fields = fields
        self.retry_after_s = retry_after_s
        self.extensions = extensions
        self.answer_fields = b""

    def with_answer_fields(self, answer_fields: bytes) -> "Refusal":
        """Itself, with fields of the policies that had admitted the request, each with its CRLF in front."""
        self.answer_fields = answer_fields
        return self


class Reply(NamedTuple):
    """An answer without a body that the gateway gives in the service's place and that is no failure, such as that to a
    CORS preflight. `fields` are encoded ones, each with its CRLF in front; `status` is one that has no body (204)."""

    status: int = 204
    fields: bytes = b""


def encode_reply(reply: Reply, *, request_id: bytes, now_s: float, keeps_alive: bool) -> bytes:
    """The whole answer. It has no Content-Length, as 204 must not (RFC 9110, section 8.6)."""
    return b"HTTP/1.1 %d %b\r\ndate: %b\r\nx-request-id: %b%b%b\r\n\r\n" % (
        reply.status, HTTPStatus(reply.status).phrase.encode(), formatdate(now_s, usegmt=True).encode(), request_id,
        reply.fields, b"" if keeps_alive else b"\r\nconnection: close",
    )  # fmt: skip


def encode_refusal(
    refusal: Refusal, *, route: str | None, request_id: bytes, now_s: float, keeps_alive: bool, head_only: bool = False
) -> bytes:
    """The whole answer. `now_s` is wall time; `head_only` is for HEAD, whose answer has no body."""
    body: dict[str, object] = {
        **refusal.extensions,
        "type": PROBLEM_URN + refusal.rule,
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "detail": refusal.detail,
        "rule": refusal.rule,
        "retry": refusal.retry.value,
        "request_id": request_id.decode("latin-1"),
    }
    if route is not None:
        body["route"] = route
    fields = refusal.fields
    if refusal.retry is Retry.SAFE:
        fields = (*fields, ("retry-after", str(refusal.retry_after_s)))
    fields = (*fields, ("x-request-id", request_id.decode("latin-1")))
    return encode_answer(
        refusal.status, Problem.media_type, json.dumps(body).encode() + b"\n", fields,
        now_s=now_s, keeps_alive=keeps_alive, head_only=head_only, more_fields=refusal.answer_fields,
    )  # fmt: skip


def encode_answer(
    status: int,
    media_type: str,
    body: bytes,
    fields: tuple[tuple[str, str], ...] = (),
    *,
    now_s: float,
    keeps_alive: bool,
    head_only: bool = False,
    more_fields: bytes = b"",
) -> bytes:
    """An HTTP/1.1 answer with a body of known length. `more_fields` are encoded ones, each with its CRLF in front."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"date: {formatdate(now_s, usegmt=True)}",
        f"content-type: {media_type}",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    if not keeps_alive:
        lines.append("connection: close")
    head = "\r\n".join(lines).encode("latin-1") + more_fields + b"\r\n\r\n"
    return head if head_only else head + body


def encode_welcome(name: str, admin_url: str) -> bytes:
    """What `GET /` answers when no route takes it: JSON for people, in less than fifteen lines."""
    return (
        json.dumps(
            {
                "name": name,
                "what": "Quorate API gateway: no route takes '/', so the gateway answers itself",
                "routes": f"{admin_url}/v1/gateway/routes",
                "explain": f"{admin_url}/v1/gateway/explain?method=GET&path=/orders/1",
                "metrics": f"{admin_url}/metrics",
                "docs": f"{admin_url}/docs",
                "change_routes": "./quorate config edit default gateway routes.yaml",
            },
            indent=2,
        ).encode()
        + b"\n"
    )
