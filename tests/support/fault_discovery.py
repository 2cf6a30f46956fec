"""Who answers, and who discovery says does: an observer that compares the two every LOOK_INTERVAL_S, and its figures.

The truth is what the test does: it ends, stops and starts instances, and says so as it happens. The views are what
callers go by: each node's list, as its watchers are told it, and the copy of an SDK client that follows the nodes. Two
kinds of answers are wrong:

- *dead*: an instance is said to take traffic, and does not answer;
- *missing*: an instance answers, and is not said to take traffic.

While an instance is being started, or told to end, it may be there or not. An answer that was on
its way while the truth changed is no sample. A span of wrong answers of one view about one instance begins with the
truth's change (or the last right answer, if that came later) and ends with the next right answer, so it is never told
shorter than it was. A node that does not answer is silent, and is not wrong.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import httpx
from quorate_core.tasks import TaskOwner
from quorate_sdk import Client
from support import plain_http
from support.node_processes import until

LOOK_INTERVAL_S = 0.05
LOOK_S_MAX = 1.0
STOP_S_MAX = 20.0
RIGHT_S_MAX = 40.0
SPANS_MAX = 10_000
SPANS_SHOWN_MAX = 8
DEAD, MISSING = "dead", "missing"


class Truth:
    """Which instances answer, since when. Any thread may say and ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: dict[str, list[tuple[float, bool | None]]] = {}

    def answers(self, instance: str) -> None:
        self._say(instance, True)

    def is_dead(self, instance: str) -> None:
        self._say(instance, False)

    def is_unsettled(self, instance: str) -> None:
        """From now on it may be there or not: it is being started or ended."""
        self._say(instance, None)

    def _say(self, instance: str, state: bool | None) -> None:
        with self._lock:
            self._changes.setdefault(instance, []).append((time.monotonic(), state))

    def unchanged_since(self, began_s: float) -> dict[str, tuple[bool, float]]:
        """Of each instance that has answered, or has not, from then to now: which, and since when."""
        with self._lock:
            found = {instance: changes[-1] for instance, changes in self._changes.items() if changes[-1][0] < began_s}
        return {instance: (state, since_s) for instance, (since_s, state) in found.items() if state is not None}


@dataclass(frozen=True)
class Span:
    """Wrong answers of one view about one instance. `end_s` is None while the last answer was wrong."""

    view: str
    instance: str
    kind: str
    begin_s: float
    end_s: float | None

    def lasted_s(self, now_s: float) -> float:
        return (now_s if self.end_s is None else self.end_s) - self.begin_s


class Judge:
    """What one view's answers were worth. Pure: times and answers are arguments."""

    def __init__(self, view: str) -> None:
        self.view = view
        self.samples = 0
        self.wrong: Counter[str] = Counter()
        self.spans: list[Span] = []
        self._open: dict[str, Span] = {}
        self._right_s: dict[str, float] = {}

    def look(self, listed: frozenset[str], truth: Mapping[str, tuple[bool, float]], now_s: float) -> None:
        """One answer, and what was true all the while it was made."""
        for instance, (answers, since_s) in truth.items():
            self.samples += 1
            kind = None if answers == (instance in listed) else MISSING if answers else DEAD
            current = self._open.get(instance)
            if current is not None and current.kind != kind:
                self._close(instance, now_s)
            if kind is None:
                self._right_s[instance] = now_s
                continue
            self.wrong[kind] += 1
            if instance not in self._open:
                begin_s = max(since_s, self._right_s.get(instance, since_s))
                self._open[instance] = Span(self.view, instance, kind, begin_s, None)

    def _close(self, instance: str, now_s: float) -> None:
        span = self._open.pop(instance)
        if len(self.spans) < SPANS_MAX:
            self.spans.append(Span(span.view, span.instance, span.kind, span.begin_s, now_s))

    @property
    def is_right(self) -> bool:
        """Whether the last answer was."""
        return self.samples > 0 and not self._open

    def all_spans(self) -> list[Span]:
        return [*self.spans, *self._open.values()]


class View(Protocol):
    name: str

    async def listed(self) -> frozenset[str] | None:
        """Ids that are said to take traffic; None when it does not answer."""
        ...


class NodeView:
    """What a node tells its watchers: its own copy, without asking the others."""

    def __init__(self, name: str, url: str, service: str, http: httpx.AsyncClient) -> None:
        self.name = name
        self._url = f"{url}/v1/registry/default/services/{service}?consistency=stale"
        self._http = http

    async def listed(self) -> frozenset[str] | None:
        try:
            answer = await self._http.get(self._url)
        except httpx.HTTPError:
            return None
        if not answer.is_success:
            return None
        instances = answer.json()["instances"]
        return frozenset(each["id"] for each in instances if each["status"] == "UP" and each["weight"] > 0)


class SdkView:
    """The copy of a client that follows the nodes; it always answers."""

    name = "sdk"

    def __init__(self, client: Client, service: str) -> None:
        self._client = client
        self._service = service

    async def listed(self) -> frozenset[str] | None:
        return frozenset(each.id for each in self._client.discovery.instances(self._service) if each.takes_traffic)


class Observer:
    """Use as a context manager: inside of it all views are looked at, on a thread of its own."""

    def __init__(self, urls: Mapping[str, str], service: str, headers: Mapping[str, str]) -> None:
        """`urls` of the nodes by name."""
        self.truth = Truth()
        self._urls = dict(urls)
        self._service = service
        self._headers = dict(headers)
        self._judges = {name: Judge(name) for name in (*urls, SdkView.name)}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._looked_s = dict.fromkeys(self._judges, 0.0)
        # When the last answer of each view was asked for.
        self._thread = threading.Thread(target=self._run_thread, name="observer of discovery", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(STOP_S_MAX)
        assert not self._thread.is_alive(), "the observer of discovery does not end"
        if self._failure is not None and error is None:
            raise self._failure

    def wait_right(self, views: Sequence[str] = (), within_s: float = RIGHT_S_MAX) -> float:
        """Until each of these views (all, if none is named) has said the truth as of now or later; returns after how
        many seconds."""
        began_s = time.monotonic()
        names = views or list(self._judges)

        def are_right() -> bool:
            assert self._failure is None, f"the observer has failed: {self._failure!r}"
            with self._lock:
                return all(self._looked_s[name] > began_s and self._judges[name].is_right for name in names)

        until(f"{', '.join(names)} say the truth", are_right, within_s)
        return time.monotonic() - began_s

    def run_for(self, seconds: float) -> None:
        """Look on for so long: the length of a fault is a part of it."""
        self._stopping.wait(seconds)

    def spans(self, kind: str, views: Sequence[str] = ()) -> list[Span]:
        with self._lock:
            return [
                span for name in views or self._judges for span in self._judges[name].all_spans() if span.kind == kind
            ]

    def longest_s(self, kind: str, views: Sequence[str] = ()) -> float:
        """Of the wrong answers of that kind; 0 when there was none."""
        now_s = time.monotonic()
        return max((span.lasted_s(now_s) for span in self.spans(kind, views)), default=0.0)

    def require(self, *, dead_s_max: float, missing_s_max: float, views: Sequence[str] = ()) -> str:
        """Fails when any wrong answer lasted longer, or a view was never asked; returns the figures."""
        now_s = time.monotonic()
        assert all(judge.samples for judge in self._judges.values()), self.figures()
        for kind, bound_s in ((DEAD, dead_s_max), (MISSING, missing_s_max)):
            long = [span for span in self.spans(kind, views) if span.lasted_s(now_s) > bound_s]
            assert not long, f"{kind} for longer than {bound_s:.2f} s: {long[:SPANS_SHOWN_MAX]}\n{self.figures()}"
        return self.figures()

    def figures(self) -> str:
        """How many answers were wrong, and for how long at most."""
        now_s, lines = time.monotonic(), []
        with self._lock:
            for name, judge in self._judges.items():
                told = []
                for kind in (DEAD, MISSING):
                    lasted = [span.lasted_s(now_s) for span in judge.all_spans() if span.kind == kind]
                    longest = f", for {max(lasted):.2f} s at most" if lasted else ""
                    told.append(f"{judge.wrong[kind]} {kind}{longest}")
                lines.append(f"  {name}: {judge.samples} answers, of them {'; '.join(told)}")
        return "\n".join(lines)

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # told by whoever waits, and at the end
            self._failure = error

    async def _run(self) -> None:
        client = Client(list(self._urls.values()), token=self._token())
        failures: list[BaseException] = []
        async with (
            plain_http.async_client(timeout=LOOK_S_MAX, headers=self._headers) as http,
            client,
            TaskOwner("observer", failures.append) as tasks,
        ):
            views: list[View] = [NodeView(name, url, self._service, http) for name, url in self._urls.items()]
            for view in (*views, SdkView(client, self._service)):
                tasks.start(self._look_on(view), view.name)
            while not self._stopping.is_set() and not failures:  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(LOOK_INTERVAL_S)
        if failures:
            raise failures[0]

    async def _look_on(self, view: View) -> None:
        judge = self._judges[view.name]
        while True:
            began_s = time.monotonic()
            listed = await view.listed()
            ended_s = time.monotonic()
            if listed is not None:
                truth = self.truth.unchanged_since(began_s)
                with self._lock:
                    judge.look(listed, truth, ended_s)
                    self._looked_s[view.name] = began_s
            await asyncio.sleep(max(0.0, began_s + LOOK_INTERVAL_S - time.monotonic()))

    def _token(self) -> str | None:
        return self._headers.get("authorization", "").removeprefix("Bearer ") or None
