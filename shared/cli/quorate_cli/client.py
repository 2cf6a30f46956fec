"""The control plane's HTTP API for commands: one call at a time, over any of its endpoints.

Endpoints are tried in turn. What may be sent again is decided by what is known to have happened (`may_repeat`): a
connection that was refused did nothing; an answer that says `retry: safe` did nothing; a read may always be repeated;
a write whose answer was lost may have been done, and is reported as such, unless it carries a request id: such a one is
applied once however often it is sent, so it is sent again. All of it within one deadline, which is longer than an
election takes.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from pydantic import BaseModel, ValidationError
from quorate_core.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidContent,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    PayloadTooLarge,
    PreconditionFailed,
    QuorateError,
    Retry,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    error_from_problem,
)

from quorate_cli.endpoints import HOW_TO_START, Target
from quorate_cli.etcd_errors import error_from_etcd, is_etcd_error

DEADLINE_S = 8.0
CONNECT_TIMEOUT_S = 2.0
ROUND_PAUSE_S = 0.2
STREAM_SILENCE_S = 15.0
"""The server sends a comment every 5 s: after three of them missed, the stream is dead."""
ATTEMPT_S = 3.0
"""What may be sent again, and one endpoint has not answered in this time, is asked of the next one."""
LINE_BYTES_MAX = 64 * 1024 * 1024
"""Of a stream of JSON lines: more than what the store writes at once."""
REQUEST_ID_HEADER = "quorate-request-id"

ModelT = TypeVar("ModelT", bound=BaseModel)
Parameters = Mapping[str, str | int | list[str]]


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One Server-Sent Event. `id` is the store's revision as text, empty when the event had none."""

    event: str
    id: str
    data: str


def api_path(*segments: str) -> str:
    """A path of the API, with every segment quoted: a name from the command line is never part of the structure."""
    return "/v1/" + "/".join(quote(segment, safe="") for segment in segments)


def may_repeat(error: QuorateError, is_read: bool) -> bool:
    """Whether the same request may go to another endpoint, or to this one again."""
    return error.kind.retry is Retry.SAFE or (is_read and isinstance(error, OutcomeUnknown))


class ControlPlane:
    """Use as a context manager. Raises the errors that the server raised, and Unavailable when nobody answers."""

    def __init__(self, target: Target, deadline_s: float = DEADLINE_S, attempt_s: float = ATTEMPT_S) -> None:
        self._target = target
        self._attempt_s = attempt_s
        self._deadline_s = deadline_s
        headers = {"authorization": f"Bearer {target.token}"} if target.token else {}
        # NB: no proxy from the environment. Control planes are near, and a token must not pass a stranger.
        self._http = httpx.Client(headers=headers, trust_env=False, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def read(self, model: type[ModelT], path: str, parameters: Parameters | None = None) -> ModelT:
        """GET `path` as `model`."""
        return _parsed(model, self._call("GET", path, parameters or {}, {}, None))

    def write(
        self, model: type[ModelT], method: str, path: str, *, parameters: Parameters | None = None,
        headers: Mapping[str, str] | None = None, content: bytes | None = None,
    ) -> ModelT:  # fmt: skip
        """Send a change. Raises OutcomeUnknown when the answer was lost after the request had been sent."""
        return _parsed(model, self._call(method, path, parameters or {}, headers or {}, content))

    def read_json(self, path: str, parameters: Parameters | None = None) -> Any:
        """GET `path` as whatever JSON it is."""
        answer = self._call("GET", path, parameters or {}, {}, None)
        try:
            return answer.json()
        except ValueError as error:
            raise _not_understood(answer) from error

    def call_json(self, path: str, body: Mapping[str, Any], *, request_id: str = "") -> Any:
        """POST `body` to the store's API; returns what it answers. Without a `request_id` it is a read.

        Raises OutcomeUnknown for a write that may have been done.
        """
        headers = {"content-type": "application/json", **({REQUEST_ID_HEADER: request_id} if request_id else {})}
        answer = self._call("POST", path, {}, headers, json.dumps(body).encode(), _Kind.of_store_call(request_id))
        try:
            return answer.json()
        except ValueError as error:
            raise _not_understood(answer) from error

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._target.endpoints

    @contextmanager
    def json_lines(
        self, endpoint: str, path: str, messages: Sequence[Mapping[str, Any]], silence_s: float
    ) -> Iterator[Iterator[Any]]:
        """POST `messages` to one of `endpoints`; within the context, each line of its answer as the JSON that it is,
        until the answer ends. Raises Silent when nothing comes for `silence_s` seconds, and Unavailable when it breaks
        off or cannot begin."""
        headers = {"content-type": "application/json"}
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        url, content = endpoint + path, b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        try:
            with self._http.stream("POST", url, headers=headers, content=content, timeout=timeout) as answer:
                _require_success(answer)
                yield (_decoded(line, answer) for line in _lines(answer))
        except httpx.ReadTimeout as error:
            raise Silent(f"{endpoint} has sent nothing for {silence_s:g} s") from error
        except httpx.HTTPError as error:
            raise self._transport_failure(error, endpoint, is_read=True) from error

    @contextmanager
    def download(self, path: str, parameters: Parameters, silence_s: float) -> Iterator[Iterator[bytes]]:
        """GET `path` from the first endpoint that gives it; within the context, its body in pieces, as they come.

        Raises Unavailable when that breaks off, or nothing comes for `silence_s` seconds.
        """
        endpoint, answer = self._begin_download(path, parameters, silence_s)
        try:
            yield answer.iter_bytes()
        except httpx.HTTPError as error:
            raise self._transport_failure(error, endpoint, is_read=True) from error
        finally:
            answer.close()

    def _begin_download(self, path: str, parameters: Parameters, silence_s: float) -> tuple[str, httpx.Response]:
        """The first endpoint that answers well, and its answer, whose body is still to be read."""
        deadline_s = time.monotonic() + self._deadline_s
        while True:
            failures: list[QuorateError] = []
            for endpoint in self._target.endpoints:
                try:
                    return endpoint, self._open(endpoint, path, parameters, silence_s)
                except QuorateError as error:
                    if not may_repeat(error, is_read=True):
                        raise
                    failures.append(error)
            self._give_up_if_hopeless(failures, deadline_s)
            time.sleep(ROUND_PAUSE_S)

    def _open(self, endpoint: str, path: str, parameters: Parameters, silence_s: float) -> httpx.Response:
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        # Not packed on its way: it is large, and compared with its own checksum.
        headers = {"accept-encoding": "identity"}
        request = self._http.build_request("GET", endpoint + path, params=parameters, headers=headers, timeout=timeout)
        try:
            answer = self._http.send(request, stream=True)
            try:
                _require_success(answer)
            except BaseException:
                answer.close()
                raise
        except httpx.HTTPError as error:
            raise self._transport_failure(error, endpoint, is_read=True) from error
        return answer

    def stream(self, path: str, parameters: Parameters, last_event_id: str) -> Iterator[StreamEvent]:
        """Events from the first endpoint that answers, until the stream ends, which is not an error.

        Raises Unavailable when no endpoint answers; the caller connects again, with the id of its last event.
        """
        headers = {"accept": "text/event-stream", **({"last-event-id": last_event_id} if last_event_id else {})}
        timeout = httpx.Timeout(STREAM_SILENCE_S, connect=CONNECT_TIMEOUT_S)
        failures: list[QuorateError] = []
        for endpoint in self._target.endpoints:
            has_begun = False
            try:
                with self._http.stream(
                    "GET", endpoint + path, params=parameters, headers=headers, timeout=timeout
                ) as answer:
                    _require_success(answer)
                    for event in EventSource(answer).iter_sse():
                        has_begun = True
                        yield StreamEvent(event.event, event.id, event.data)
                    return
            except httpx.HTTPError as error:
                if has_begun:
                    return  # elsewhere it would begin again at the same place
                failures.append(self._transport_failure(error, endpoint, is_read=True))
            except QuorateError as error:
                if not may_repeat(error, is_read=True):
                    raise
                failures.append(error)
        answered = [error for error in failures if not isinstance(error, _Unreachable)]
        raise answered[0] if answered else self._nobody_answers()

    def _call(
        self, method: str, path: str, parameters: Parameters, headers: Mapping[str, str], content: bytes | None,
        kind: "_Kind | None" = None,
    ) -> httpx.Response:  # fmt: skip
        kind = kind or (_Kind.READ if method == "GET" else _Kind.WRITE)
        deadline_s = time.monotonic() + self._deadline_s
        in_doubt: OutcomeUnknown | None = None
        while True:
            failures: list[QuorateError] = []
            for endpoint in self._target.endpoints:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                try:
                    return self._attempt(method, endpoint, path, parameters, headers, content, kind, left_s)
                except QuorateError as error:
                    if not may_repeat(error, kind is not _Kind.WRITE):
                        raise
                    if isinstance(error, OutcomeUnknown) and kind is _Kind.WRITE_ONCE:
                        in_doubt = error
                    failures.append(error)
            try:
                self._give_up_if_hopeless(failures, deadline_s)
            except QuorateError as error:
                # NB: what an earlier try may have done is not undone by a later one that surely did nothing.
                raise (in_doubt or error) from error.__cause__
            time.sleep(ROUND_PAUSE_S)

    def _give_up_if_hopeless(self, failures: list[QuorateError], deadline_s: float) -> None:
        """Raise when another round is of no use: nobody listens, or there is no time left for one."""
        nobody_listens = all(isinstance(error, _Unreachable) for error in failures)
        if failures and nobody_listens:
            raise self._nobody_answers() from failures[0]
        if time.monotonic() + ROUND_PAUSE_S >= deadline_s:
            answered = [error for error in failures if not isinstance(error, _Unreachable)]
            raise answered[0] if answered else DeadlineExceeded(f"no answer within {self._deadline_s:g} s")

    def _attempt(
        self, method: str, endpoint: str, path: str, parameters: Parameters, headers: Mapping[str, str],
        content: bytes | None, kind: "_Kind", left_s: float,
    ) -> httpx.Response:  # fmt: skip
        answer_s = left_s if kind is _Kind.WRITE else min(left_s, self._attempt_s)
        timeout = httpx.Timeout(answer_s, connect=min(left_s, CONNECT_TIMEOUT_S))
        try:
            answer = self._http.request(
                method, endpoint + path, params=parameters, headers=headers, content=content, timeout=timeout
            )
        except httpx.HTTPError as error:
            raise self._transport_failure(error, endpoint, kind is _Kind.READ) from error
        _require_success(answer, is_read=kind is _Kind.READ)
        return answer

    def _transport_failure(self, error: httpx.HTTPError, endpoint: str, is_read: bool) -> QuorateError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return _Unreachable(f"{endpoint} cannot be reached ({error})")
        if is_read:
            return Unavailable(f"{endpoint} broke off its answer ({error or type(error).__name__})")
        return OutcomeUnknown(f"{endpoint} took the request and its answer was lost ({error or type(error).__name__})")

    def _nobody_answers(self) -> Unavailable:
        where = ", ".join(self._target.endpoints)
        return Unavailable(f"no {self._target.what} answers at {where}; is it running?", advice=HOW_TO_START)


class _Kind(Enum):
    """What is known of a request that may have to be sent again."""

    READ = "read"
    WRITE = "write"
    WRITE_ONCE = "write once"
    """It carries a request id."""

    @classmethod
    def of_store_call(cls, request_id: str) -> "_Kind":
        return cls.WRITE_ONCE if request_id else cls.READ


class Silent(Unavailable):
    """A stream on which nothing comes, or nobody is there any more: from outside they look alike."""


class _Unreachable(Unavailable):
    """Nobody listens at one endpoint."""


def _parsed(model: type[ModelT], answer: httpx.Response) -> ModelT:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        raise _not_understood(answer) from error


def _not_understood(answer: httpx.Response) -> QuorateError:
    return QuorateError(
        f"the answer of {answer.request.url} cannot be understood",
        advice="Is it a Quorate control plane, and of the same version as this command?",
    )


def _lines(answer: httpx.Response) -> Iterator[bytes]:
    """The lines of a stream as they come; what stands after the last line's end is a line too."""
    waiting = bytearray()
    for chunk in answer.iter_bytes():
        waiting += chunk
        if b"\n" in chunk:
            *whole, rest = waiting.split(b"\n")
            yield from filter(None, map(bytes, whole))
            waiting = bytearray(rest)
        if len(waiting) > LINE_BYTES_MAX:
            raise PayloadTooLarge(f"{answer.request.url} sends a line of over {LINE_BYTES_MAX} bytes")
    if waiting:
        yield bytes(waiting)


def _decoded(line: bytes, answer: httpx.Response) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise _not_understood(answer) from error


def _require_success(answer: httpx.Response, *, is_read: bool = True) -> None:
    if not answer.is_success:
        answer.read()
        raise _error_of(answer, is_read=is_read)


_BY_STATUS: dict[int, type[QuorateError]] = {
    400: InvalidRequest, 401: Unauthenticated, 403: Forbidden, 404: NotFound, 405: InvalidRequest, 409: Conflict,
    412: PreconditionFailed, 413: PayloadTooLarge, 422: InvalidContent, 429: TooManyRequests, 503: Unavailable,
    504: OutcomeUnknown,
}  # fmt: skip
"""For answers that carry no problem of ours: a path that is not served, something else between us and a node."""


def _error_of(answer: httpx.Response, *, is_read: bool) -> QuorateError:
    try:
        body = json.loads(answer.content)
    except ValueError:
        body = None
    if is_etcd_error(body):
        return error_from_etcd(body, is_read=is_read)
    if not isinstance(body, dict) or "detail" not in body:
        body = {"detail": f"{answer.request.url} answered with HTTP status {answer.status_code}"}
    error = error_from_problem(body)
    by_status = _BY_STATUS.get(answer.status_code)
    if type(error) is QuorateError and by_status is not None:
        return by_status(error.detail, **error.extensions)
    return error
