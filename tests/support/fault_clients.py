"""Clients that write and read at all nodes at once while these are broken, and a judge of what they saw.

Each client is a thread that goes from node to node: it tries the next one when a node does not answer, and now and
then when it does. Keys are put and got by the v3 JSON API; documents of the config center are published,
compared-and-set and read by its own. All values are different. What became of a call is what an honest client would
make of the answer:

- done, and then it goes into the history with its answer;
- surely not done: nobody listened, or the answer said `"retry": "safe"`; then it is left out, and if that was a lie,
  somebody reads a value that nobody wrote, or finds a version too many;
- unknown: a connection that broke, an answer that did not come, `"retry": "unknown"`.

Any other answer is a surprise, and fails the judgement.
"""

import base64
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from random import Random
from types import TracebackType
from typing import Any, Self

import httpx
from quorate_simulation.linearizability import Model, Operation, Result, check
from quorate_simulation.models import KeyAnswer, KeyCall, KeyModel, Verb
from support import plain_http
from support.fault_documents import DocumentModel, Found, Publish, Published, Read, Refused
from support.node_processes import until

CLIENTS = 6
KEYS = 3
DOCUMENTS = 2
CALL_S_MAX = 4.0
"""Longer than a pause or a cut of these tests: a node that comes back still answers what it was asked before."""
PAUSE_S = 0.004
"""Between two calls of a client: the machine's cores are for the nodes."""
FAILED_PAUSE_S = 0.05
WANDER_PROBABILITY = 0.01
WRITES_S_MAX = 20.0
STOP_S_MAX = 20.0
OPERATIONS_MAX = 20_000
SURPRISES_SHOWN_MAX = 5

_GRPC_UNKNOWN = {4}
_GRPC_SAFE = {8, 14}


class Outcome(Enum):
    DONE = auto()
    ABSENT = auto()
    REFUSED = auto()
    NOT_DONE = auto()
    UNKNOWN = auto()
    SURPRISE = auto()


@dataclass(frozen=True)
class Reply:
    outcome: Outcome
    body: Any
    began_s: float
    ended_s: float


def ask(http: httpx.Client, method: str, url: str, **options: Any) -> Reply:
    """One call, and what became of it. Never raises what the network does."""
    began_s = time.monotonic()
    try:
        answer = http.request(method, url, **options)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        outcome, body = Outcome.NOT_DONE, repr(error)
    except httpx.HTTPError as error:
        outcome, body = Outcome.UNKNOWN, repr(error)
    else:
        outcome, body = _outcome_of(answer), _body_of(answer)
    return Reply(outcome, body, began_s, time.monotonic())


def _outcome_of(answer: httpx.Response) -> Outcome:
    if answer.is_success:
        return Outcome.DONE
    expected = {("GET", 404): Outcome.ABSENT, ("PUT", 412): Outcome.REFUSED}
    if (found := expected.get((answer.request.method, answer.status_code))) is not None:
        return found
    body = _body_of(answer)
    if answer.status_code not in (429, 503, 504) or not isinstance(body, dict):
        return Outcome.SURPRISE
    if body.get("retry") == "safe" or body.get("code") in _GRPC_SAFE:
        return Outcome.NOT_DONE
    is_unknown = body.get("retry") == "unknown" or body.get("code") in _GRPC_UNKNOWN
    return Outcome.UNKNOWN if is_unknown else Outcome.SURPRISE


def _body_of(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text


class Load:
    """Use as a context manager: inside it the clients run. `judge` after it."""

    def __init__(
        self, urls: Mapping[str, str], headers: Mapping[str, str], label: str, seed: int, call_s_max: float = CALL_S_MAX
    ) -> None:
        """`urls` of the nodes by name. `label` sets this load's keys apart from another's."""
        self.urls = dict(urls)
        self.headers = dict(headers)
        self.label = label
        self.seed = seed
        self.keys = [f"{label}/key-{number}".encode() for number in range(KEYS)]
        self.documents = [f"default/{label}/document-{number}.txt" for number in range(DOCUMENTS)]
        self.call_s_max = call_s_max
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._key_history: list[Operation] = []
        self._document_history: list[Operation] = []
        self._writes: Counter[str] = Counter()
        self._outcomes: Counter[Outcome] = Counter()
        self._surprises: list[str] = []
        self._threads = [
            threading.Thread(target=_Client(self, number).run, name=f"client {number}", daemon=True)
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for_writes(len(self._threads))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(STOP_S_MAX)

    def writes(self, through: Collection[str] = ()) -> int:
        """How many writes were acknowledged so far by these nodes, or by all."""
        with self._lock:
            return sum(count for name, count in self._writes.items() if not through or name in through)

    def wait_for_writes(self, more: int, through: Collection[str] = (), within_s: float = WRITES_S_MAX) -> float:
        """Until so many further writes are acknowledged, by these nodes; returns after how many seconds."""
        began_s, target = time.monotonic(), self.writes(through) + more
        until(f"{more} more writes through {through or 'any node'}", lambda: self.writes(through) >= target, within_s)
        return time.monotonic() - began_s

    def calls(self, outcome: Outcome) -> int:
        """How many calls have ended like this so far."""
        with self._lock:
            return self._outcomes[outcome]

    def run_for(self, seconds: float) -> None:
        """Let the clients go on for so long: the length of a fault is a part of it."""
        self.stopping.wait(seconds)

    def judge(self) -> str:
        """Read everything once more at each node, and fail unless all of it is linearizable. Returns what it was."""
        assert not any(thread.is_alive() for thread in self._threads), "a client still waits for an answer"
        with plain_http.client(headers=self.headers, timeout=CALL_S_MAX) as http:
            for node in self.urls:
                last = Caller(self, -1, http, node)
                for key in self.keys:
                    until(f"{node} answers for {key!r}", lambda last=last, key=key: last.get(key) is Outcome.DONE)
                for document in self.documents:
                    until(f"{node} answers for {document}", lambda last=last, one=document: last.read(one) is not None)
        assert not self._surprises, f"seed {self.seed}: {self._surprises[:SURPRISES_SHOWN_MAX]}"
        self._require_linearizable(KeyModel(), settled(self._key_history))
        self._require_linearizable(DocumentModel(), self._document_history)
        unknown, failed = self.calls(Outcome.UNKNOWN), self.calls(Outcome.NOT_DONE)
        return (
            f"{self.label}: {len(self._key_history) + len(self._document_history)} operations linearizable "
            f"({unknown} of unknown outcome, {failed} surely not done)"
        )

    def _require_linearizable(self, model: Model, history: Sequence[Operation]) -> None:
        verdict = check(model, history)
        assert verdict.result is Result.LINEARIZABLE, f"seed {self.seed}: {verdict.explain()}"

    def record(self, node: str, operation: Operation, reply: Reply) -> None:
        """Operations that surely had no effect, and reads that failed, do not come here."""
        history = self._key_history if isinstance(operation.input, KeyCall) else self._document_history
        is_write = isinstance(operation.input, Publish) or (
            isinstance(operation.input, KeyCall) and operation.input.verb is Verb.PUT
        )
        with self._lock:
            history.append(operation)
            self._writes[node] += is_write and reply.outcome is Outcome.DONE
            if len(self._key_history) + len(self._document_history) >= OPERATIONS_MAX:
                self.stopping.set()

    def count(self, node: str, reply: Reply) -> None:
        with self._lock:
            self._outcomes[reply.outcome] += 1
            if reply.outcome is Outcome.SURPRISE:
                self._surprises.append(f"{node}: {reply.body!r}")


class Caller:
    """Calls at `node`, each recorded in the history of `load` as far as it belongs there."""

    def __init__(self, load: Load, client: int, http: httpx.Client, node: str) -> None:
        self._load = load
        self._client = client
        self._http = http
        self.node = node

    def put(self, key: bytes, value: bytes) -> Outcome:
        reply = self._ask("POST", "/v3/kv/put", json={"key": _text(key), "value": _text(value)})
        answer = KeyAnswer(revision=int(reply.body["header"]["revision"])) if reply.outcome is Outcome.DONE else None
        return self._record_write(KeyCall(Verb.PUT, key, value), answer, reply)

    def get(self, key: bytes) -> Outcome:
        reply = self._ask("POST", "/v3/kv/range", json={"key": _text(key)})
        if reply.outcome is Outcome.DONE:
            self._record(KeyCall(Verb.GET, key), _found(reply.body.get("kvs", [])), reply)
        return reply.outcome

    def read(self, document: str) -> Found | None:
        """None when it was not answered."""
        reply = self._ask("GET", f"/v1/config/{document}")
        if reply.outcome not in (Outcome.DONE, Outcome.ABSENT):
            return None
        is_there = reply.outcome is Outcome.DONE
        found = Found(reply.body["version"], reply.body["content"]) if is_there else Found(0, None)
        self._record(Read(document), found, reply)
        return found

    def publish(self, document: str, content: str, over: int | None) -> Outcome:
        condition = {} if over is None else {"if-match": f'"{over}"'} if over else {"if-none-match": "*"}
        reply = self._ask("PUT", f"/v1/config/{document}", content=content, headers=condition)
        answer: Published | Refused | None = None
        if reply.outcome is Outcome.DONE:
            answer = Published(reply.body["version"])
        elif reply.outcome is Outcome.REFUSED:
            answer = Refused(reply.body["version"])
        return self._record_write(Publish(document, content, over), answer, reply)

    def _ask(self, method: str, path: str, **options: Any) -> Reply:
        reply = ask(self._http, method, self._load.urls[self.node] + path, **options)
        self._load.count(self.node, reply)
        return reply

    def _record(self, call: Any, answer: Any, reply: Reply) -> None:
        self._load.record(self.node, Operation(self._client, call, answer, reply.began_s, reply.ended_s), reply)

    def _record_write(self, call: Any, answer: Any, reply: Reply) -> Outcome:
        if answer is not None:
            self._record(call, answer, reply)
        elif reply.outcome is not Outcome.NOT_DONE:  # a surprise may have happened too
            self._load.record(self.node, Operation(self._client, call, None, reply.began_s, None), reply)
        return reply.outcome


class _Client:
    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._random = Random(f"{load.seed} {load.label} {number}")
        self._written = 0

    def run(self) -> None:
        nodes = list(self._load.urls)
        at = self._number
        with plain_http.client(headers=self._load.headers, timeout=self._load.call_s_max) as http:
            while not self._load.stopping.is_set():
                outcome = self._step(Caller(self._load, self._number, http, nodes[at % len(nodes)]))
                has_failed = outcome in (Outcome.NOT_DONE, Outcome.UNKNOWN)
                at += has_failed or self._random.random() < WANDER_PROBABILITY
                self._load.stopping.wait(FAILED_PAUSE_S if has_failed else PAUSE_S)

    def _step(self, caller: Caller) -> Outcome:
        """One call, or a read and a compare-and-set on what it found."""
        draw = self._random.random()
        key, document = self._random.choice(self._load.keys), self._random.choice(self._load.documents)
        if draw < 0.35:
            return caller.put(key, self._unique().encode())
        if draw < 0.7:
            return caller.get(key)
        if draw < 0.8:
            return caller.publish(document, self._unique(), None)
        found = caller.read(document)
        if found is None:
            return Outcome.NOT_DONE
        return Outcome.DONE if draw < 0.85 else caller.publish(document, self._unique(), found.version)

    def _unique(self) -> str:
        self._written += 1
        return f"{self._number}.{self._written}"


def settled(history: Sequence[Operation]) -> list[Operation]:
    """The same history of keys, with what its reads say about puts of unknown outcome. As all values are different, one
    that nobody has read may be left out, and one that somebody has read took effect before that read was answered. The
    verdict is the same, and found sooner: else each of them could stand anywhere up to the end."""
    read_s: dict[bytes, float] = {}
    for operation in history:
        if operation.input.verb is Verb.GET and operation.output.found is not None:
            found = operation.output.found
            read_s[found] = min(operation.ended_s or 0.0, read_s.get(found, float("inf")))
    known = []
    for operation in history:
        if operation.output is not None:
            known.append(operation)
        elif (ended_s := read_s.get(operation.input.value)) is not None:
            known.append(replace(operation, ended_s=ended_s) if ended_s >= operation.began_s else operation)
    return known


def _found(kvs: Sequence[Mapping[str, str]]) -> KeyAnswer:
    if not kvs:
        return KeyAnswer()
    return KeyAnswer(base64.b64decode(kvs[0]["value"]), revision=int(kvs[0]["mod_revision"]))


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()
