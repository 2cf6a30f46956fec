"""Draining with proof: an instance gets no new requests, and whoever routes has said so.

Theory of operation. The instance's status becomes DRAINING at some revision. Then all nodes that are up are asked, in
rounds, who watches the service, and who of these has acknowledged that revision (`acknowledgements`). In a round each
node waits for its own streams. Between two rounds a client may have gone from one node to another; so a round counts
only as a whole, and a stream that has departed is pending unless the same client is seen elsewhere in that round.
Rounds end when nobody is missing, when nobody is missing who could still say something, or when the time is over; the
answer is that of the last round, and names those that are missing. With a node that is up by its lease and does not
answer, nothing is proven: it may have streams that nobody knows of. The same holds for one that has begun anew, or has
gone, so lately that clients of its may still be on their way to another one; and for a member of the store that this
one is connected to and that has no lease as a node, because it is just starting, or stands still.
"""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec
from quorate_sdk.wire import Drained, PendingSubscriber, SilentNode
from quorate_store.apps import Fleet, FleetAnswer
from quorate_store.port import Store

from quorate_registry.model import InstanceName
from quorate_registry.recent_nodes import RecentNodes

DRAIN_WAIT_S_DEFAULT = 10.0
DRAIN_WAIT_S_MAX = 55.0
ANSWER_S = 1.5
"""For a node to answer beyond what it waits."""
ROUND_PAUSE_S = 0.25
ACKNOWLEDGED_PATH = "/v1/registry/acknowledged"


class _Listed(msgspec.Struct, frozen=True):
    subscriber: str
    revision: int


class NodeWord(msgspec.Struct, frozen=True):
    """What one node says: `Acknowledgements.answer`. Of `pending`, `anonymous` have no name. For `settling_s` more, it
    may lack clients that it, or one before it, had."""

    acknowledged: list[str]
    pending: list[_Listed]
    departed: list[_Listed]
    anonymous: int = 0
    settling_s: float = 0.0


class Round:
    """The words of all nodes to one question, put together; `gone` are nodes that have been up until lately, and for
    how many seconds more they count; `peers` are members of the store that are there. Pure."""

    def __init__(self, answers: Sequence[FleetAnswer], gone: Mapping[str, float], peers: Iterable[str] = ()) -> None:
        words: dict[str, NodeWord] = {}
        self.silent: list[SilentNode] = []
        for answer in answers:
            try:
                if answer.error is not None:
                    raise ValueError(answer.error)
                words[answer.node.name] = msgspec.convert(answer.body, NodeWord)
            except ValueError as error:  # msgspec's are
                self.silent.append(SilentNode(node=answer.node.name, error=str(error)))
        unsettled = {name: word.settling_s for name, word in words.items() if word.settling_s > 0}
        self.silent += [_unsettled(name, "it has begun anew", left_s) for name, left_s in unsettled.items()]
        self.silent += [_unsettled(name, "it has gone", left_s) for name, left_s in gone.items()]
        told_of = {answer.node.name for answer in answers} | gone.keys()
        unannounced = "it is a member that is there, and not among the nodes that are up yet"
        self.silent += [SilentNode(node=name, error=unannounced) for name in sorted({*peers} - told_of)]
        present = {name for word in words.values() for name in word.acknowledged}
        present |= {listed.subscriber for word in words.values() for listed in word.pending}
        self.pending: list[PendingSubscriber] = []
        for node, word in words.items():
            departed = (listed for listed in word.departed if listed.subscriber not in present)
            for listed in (*word.pending, *departed):
                self.pending.append(
                    PendingSubscriber(subscriber=listed.subscriber, node=node, revision=listed.revision)
                )
        missing = {pending.subscriber for pending in self.pending}
        self.acknowledged = sorted({name for word in words.values() for name in word.acknowledged} - missing)
        self._anonymous = sum(word.anonymous for word in words.values())
        self._was_asked = bool(words)

    @property
    def is_proof(self) -> bool:
        """Everybody has acknowledged, and everybody was asked."""
        return self._was_asked and not self.pending and not self.silent

    @property
    def is_final(self) -> bool:
        """To ask again would lead to nothing else: only streams without a name are missing, if any."""
        return not self.silent and len(self.pending) == self._anonymous

    def result(self, revision: int) -> Drained:
        return Drained(
            revision=revision, drained=self.is_proof, acknowledged=self.acknowledged, pending=self.pending,
            silent_nodes=self.silent,
        )  # fmt: skip


def _unsettled(node: str, reason: str, left_s: float) -> SilentNode:
    error = f"{reason}: whoever watched there may not be back yet; ask again in {math.ceil(left_s)} s"
    return SilentNode(node=node, error=error)


async def await_acknowledgements(
    store: Store, fleet: Fleet, recent: RecentNodes, name: InstanceName, revision: int, wait_s: float
) -> Drained:
    """Who has in force what the registry has of the service at `revision`, after `wait_s` seconds at most."""
    clock = asyncio.get_running_loop()
    ends_s = clock.time() + wait_s
    while True:
        left_s = max(0.0, ends_s - clock.time())
        answers = await fleet.ask_all(_path(name, revision, left_s), left_s + ANSWER_S)
        gone = recent.take({answer.node.name for answer in answers})
        found = Round(answers, gone, (await store.status()).connected)
        left_s = ends_s - clock.time()
        if found.is_final or left_s <= 0:
            return found.result(revision)
        await asyncio.sleep(min(ROUND_PAUSE_S, left_s))


def _path(name: InstanceName, revision: int, wait_s: float) -> str:
    query: dict[str, Any] = {
        "namespace": name.namespace, "service": name.service, "revision": revision, "wait": f"{wait_s:.3f}"
    }  # fmt: skip
    return f"{ACKNOWLEDGED_PATH}?{urlencode(query)}"
