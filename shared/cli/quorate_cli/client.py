"""The control plane's HTTP API for commands: one call at a time, over any of its endpoints.

Endpoints are tried in turn. What may be sent again is decided by what is known to have happened (`may_repeat`): a
connection that was refused did nothing; an answer that says `retry: safe` did nothing; a read may always be repeated;
a write whose answer was lost may have been done, and is reported as such. All of it within one deadline, which is
longer than an election takes.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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

DEADLINE_S = 8.0
CONNECT_TIMEOUT_S = 2.0
ROUND_PAUSE_S = 0.2
STREAM_SILENCE_S = 15.0
"""The server sends a comment every 5 s: after three of them missed, the stream is dead."""
READ_ATTEMPT_S = 3.0
"""A read that one endpoint has not answered in this time is asked of the next one."""

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

    def __init__(self, target: Target, deadline_s: float = DEADLINE_S) -> None:
        self._target = target
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
        self, method: str, path: str, parameters: Parameters, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        is_read = method == "GET"
        deadline_s = time.monotonic() + self._deadline_s
        while True:
            failures: list[QuorateError] = []
            for endpoint in self._target.endpoints:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                try:
                    return self._attempt(method, endpoint, path, parameters, headers, content, left_s)
                except QuorateError as error:
                    if not may_repeat(error, is_read):
                        raise
                    failures.append(error)
            self._give_up_if_hopeless(failures, deadline_s)
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
        content: bytes | None, left_s: float,
    ) -> httpx.Response:  # fmt: skip
        answer_s = min(left_s, READ_ATTEMPT_S) if method == "GET" else left_s
        timeout = httpx.Timeout(answer_s, connect=min(left_s, CONNECT_TIMEOUT_S))
        try:
            answer = self._http.request(
                method, endpoint + path, params=parameters, headers=headers, content=content, timeout=timeout
            )
        except httpx.HTTPError as error:
            raise self._transport_failure(error, endpoint, method == "GET") from error
        _require_success(answer)
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


def _require_success(answer: httpx.Response) -> None:
    if not answer.is_success:
        answer.read()
        raise _error_of(answer)


_BY_STATUS: dict[int, type[QuorateError]] = {
    400: InvalidRequest, 401: Unauthenticated, 403: Forbidden, 404: NotFound, 405: InvalidRequest, 409: Conflict,
    412: PreconditionFailed, 413: PayloadTooLarge, 422: InvalidContent, 429: TooManyRequests, 503: Unavailable,
    504: OutcomeUnknown,
}  # fmt: skip
"""For answers that carry no problem of ours: a path that is not served, something else between us and a node."""


def _error_of(answer: httpx.Response) -> QuorateError:
    try:
        body = json.loads(answer.content)
    except ValueError:
        body = None
    if not isinstance(body, dict) or "detail" not in body:
        body = {"detail": f"{answer.request.url} answered with HTTP status {answer.status_code}"}
    error = error_from_problem(body)
    by_status = _BY_STATUS.get(answer.status_code)
    if type(error) is QuorateError and by_status is not None:
        return by_status(error.detail, **error.extensions)
    return error
