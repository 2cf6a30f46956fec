"""Saying to the registry what is in force here, when it asks for it.

Theory of operation. The registry sends an `acknowledge` event on a stream that has a name, behind all changes up to the
event's revision. By then the copy has them; whether they are *in force* the one who uses it knows, who may have to hand
them on first, as a gateway does to its workers. The newest question is the only one: who has a later revision in force
has all earlier ones too, and who asked and is not answered asks again. So a question waits in no queue, and reading the
stream waits for nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import ValidationError
from quorate_core.errors import QuorateError

from quorate_sdk.control_plane import ControlPlane, StreamEvent
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.wire import Acknowledgement, AcknowledgeRequest

ACKNOWLEDGEMENTS_PATH = "/v1/registry/acks"
LEAVE_S_MAX = 0.5
"""To say goodbye must not delay an end."""

InForce = Callable[[int], Awaitable[None]]
"""Returns when everything that the copy has up to this revision is in force."""

log = ForkSafeLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    endpoint: str
    revision: int
    stream: str


async def at_once(_revision: int) -> None:
    """What is in the copy is in force."""


class Acknowledger:
    """Answers for `subscriber`. `take` every `acknowledge` event, and run `run` as a task."""

    def __init__(
        self, control_plane: ControlPlane, subscriber: str, namespace: str, in_force: InForce = at_once
    ) -> None:
        self.subscriber = subscriber
        self._control_plane = control_plane
        self._namespace = namespace
        self._in_force = in_force
        self._newest: _Question | None = None
        self._asked = asyncio.Event()
        self._endpoint = ""
        """Of the stream; empty before there was one."""

    def heard_from(self, event: StreamEvent) -> None:
        """Every event, whatever it is: says which node the stream is from."""
        self._endpoint = event.endpoint

    def take(self, event: StreamEvent) -> None:
        """One `acknowledge` event; what was asked before it is overtaken. One that cannot be read is left out: whoever
        asked lists this subscriber as one that has not answered."""
        try:
            asked = AcknowledgeRequest.model_validate_json(event.data)
        except ValidationError as error:
            log.warning("acknowledge_event_unreadable", errors=error.error_count())
            return
        self._newest = _Question(event.endpoint, asked.revision, asked.stream)
        self._asked.set()

    async def run(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            question, self._newest = self._newest, None
            if question is not None:
                await self._answer(question)

    async def leave(self) -> None:
        """Say that nobody has to wait for this subscriber any more, as far as the node hears it in time."""
        if not self._endpoint:
            return
        goodbye = Acknowledgement(subscriber=self.subscriber, namespace=self._namespace, revision=0, leaving=True)
        await self._say(self._endpoint, goodbye, LEAVE_S_MAX)

    async def _answer(self, question: _Question) -> None:
        try:
            await self._in_force(question.revision)
        except Exception:  # of the hook, which is not ours: an answer that is not given harms nobody
            log.exception("acknowledgement_failed", subscriber=self.subscriber, revision=question.revision)
            return
        await self._say(question.endpoint, Acknowledgement(
            subscriber=self.subscriber, namespace=self._namespace, revision=question.revision, stream=question.stream,
        ))  # fmt: skip

    async def _say(self, endpoint: str, word: Acknowledgement, timeout_s: float | None = None) -> None:
        options = {} if timeout_s is None else {"timeout_s": timeout_s}
        try:
            await self._control_plane.tell(endpoint, ACKNOWLEDGEMENTS_PATH, word.model_dump(), **options)
        except QuorateError as error:
            log.info("acknowledgement_not_taken", subscriber=self.subscriber, reason=error.detail)
