"""An HTTP connection on which plain requests to hot endpoints are answered without ASGI.

Theory of operation. A connection is at rest, or it has a request. At rest, what comes in one read is looked at first:
if it is one plain request to a direct endpoint, complete, its answer is worked out, in a task only where that is
needed, and leaves in one write. Anything else goes the usual way, through the parser and ASGI. While a direct request
is under way, nothing more is read from the connection; what had come already waits, so that answers keep the order of
their requests. A connection whose client does not take its answers goes the usual way, which waits for it.

Two writes and a dozen objects less are half of what a small request costs.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from http import HTTPStatus
from typing import Any

import structlog
from starlette.responses import Response

from quorate_core.asgi import DirectEndpoint, DirectGet, request_id_of
from quorate_core.errors import QuorateError
from quorate_core.http_protocol import BoundedHttpProtocol
from quorate_core.plain_requests import PlainRequest, PlainRequests
from quorate_core.steps import run_without_task

log = structlog.get_logger(__name__)

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class DirectHttpProtocol(BoundedHttpProtocol):
    """One connection. Its application has `plain_requests` if there is anything direct in it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._plain: PlainRequests[DirectEndpoint | DirectGet] | None = getattr(self.app, "plain_requests", None)
        self._is_answering = False
        self._waiting = b""
        """What came behind a direct request that is under way."""
        self._closes_after_answer = False
        self._date: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")
        self._last_answer_s = 0.0

    def data_received(self, data: bytes) -> None:
        if self._is_answering:
            self._waiting += data
            self.flow.pause_reading()
            return
        request = self._plain.find(data) if self._plain is not None and self._is_at_rest() else None
        if request is None:
            super().data_received(data)
        else:
            self._begin(request, data[request.head_bytes :])

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting = b""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def shutdown(self) -> None:
        if self._is_answering:
            self._closes_after_answer = True
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Direct requests leave the timer as it is; it finds out when it goes off."""
        idle_s = self.loop.time() - self._last_answer_s
        if self._is_answering or idle_s < self.timeout_keep_alive:
            left_s = self.timeout_keep_alive - (0.0 if self._is_answering else idle_s)
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _is_at_rest(self) -> bool:
        """Between two messages, and free to write."""
        if self._in_head or self.transport is None or self.flow.write_paused or self.transport.is_closing():
            return False
        cycle = self.cycle
        return cycle is None or (cycle.response_complete and not cycle.more_body and not self.pipeline)

    def _begin(self, request: PlainRequest[DirectEndpoint | DirectGet], body: bytes) -> None:
        self._stop_head_timer()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        self._is_answering = True
        endpoint, headers = request.target, request.head.headers
        request_id = request_id_of(headers)
        if isinstance(endpoint, DirectGet):
            self._start(self._respond(endpoint, request_id))
            return
        if endpoint.answer_without_task is not None:
            try:
                work = endpoint.answer_without_task(body, headers)
            except Exception as error:
                self._write_error(endpoint, error, request_id)
                self._on_answered(None)
                return
            if work is not None:
                run_without_task(self._answer(endpoint, work, request_id), self._on_answered)
                return
        self._start(self._answer(endpoint, endpoint.answer(body, headers), request_id))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._on_task_done)

    async def _respond(self, endpoint: DirectGet, request_id: bytes) -> None:
        try:
            response = await endpoint.respond()
        except Exception as error:
            self._write_error(endpoint, error, request_id)
        else:
            self._write_response(response, request_id)

    async def _answer(self, endpoint: DirectEndpoint, work: Awaitable[bytes], request_id: bytes) -> None:
        try:
            answer = await work
        except Exception as error:
            self._write_error(endpoint, error, request_id)
        else:
            head = b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
            self._write(200, head % (len(answer), request_id), answer)

    def _write_error(self, endpoint: DirectEndpoint | DirectGet, error: Exception, request_id: bytes) -> None:
        shown = error if isinstance(error, QuorateError) else endpoint.hide(error, request_id)
        self._write_response(endpoint.on_error(shown), request_id)

    def _write_response(self, response: Response, request_id: bytes) -> None:
        fields = b"".join(b"%b: %b\r\n" % field for field in response.raw_headers)
        self._write(response.status_code, fields + b"x-request-id: %b\r\n" % request_id, bytes(response.body))

    def _write(self, status: int, fields: bytes, body: bytes) -> None:
        if self.transport.is_closing():
            return  # the client has gone, and will not know
        ending = b"connection: close\r\n\r\n" if self._closes_after_answer else b"\r\n"
        self.transport.write(b"".join((_STATUS_LINES[status], self._default_fields(), fields, ending, body)))

    def _default_fields(self) -> bytes:
        """What the server adds to every answer; the list is another one when it changes."""
        headers, fields = self._date
        if headers is not self.server_state.default_headers:
            headers = self.server_state.default_headers
            fields = b"".join(b"%b: %b\r\n" % field for field in headers)
            self._date = headers, fields
        return fields

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        self._on_answered(asyncio.CancelledError() if task.cancelled() else task.exception())

    def _on_answered(self, failure: BaseException | None) -> None:
        """`failure`: why no answer was written, or not a whole one; None when all went well."""
        self.server_state.total_requests += 1
        self._is_answering = False
        self._last_answer_s = self.loop.time()
        if self.transport.is_closing():
            return
        if failure is not None and not isinstance(failure, asyncio.CancelledError):
            log.error("answer_not_made", exc_info=failure)
        if self._closes_after_answer or failure is not None:
            self.transport.close()
        elif self._waiting:
            data, self._waiting = self._waiting, b""
            self.flow.resume_reading()
            self.data_received(data)
