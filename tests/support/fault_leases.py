"""An instance that lives by its heartbeats, and a judge of when it was seen to be gone.

A lease may not end before its time to live has passed since the beginning of the last renewal that was answered; after
it, and after the grace that each new leader gives, it must.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Self

from support import plain_http
from support.fault_clients import Outcome, Reply, ask
from support.node_processes import until

SERVICE = "faults"
CALL_S_MAX = 1.0
HEARTBEAT_INTERVAL_S = 0.2
LATE_S_MAX = 8.0
"""Of an end: an election, the grace of a new leader (1 s), its ticks, and a machine that has other things to do."""
STOP_S_MAX = 10.0


@dataclass(frozen=True)
class Ended:
    """A call that was answered at `seen_s` did not find it; `renewed_s`: when the last renewal that was answered was
    asked for."""

    renewed_s: float
    seen_s: float

    @property
    def after_s(self) -> float:
        return self.seen_s - self.renewed_s


class HeldInstance:
    """Use as a context manager: inside it, heartbeats go to one node after the other, each followed by a linearizable
    read of whether it is there. `ends` has every time that it was not; it is registered anew then."""

    def __init__(self, urls: Mapping[str, str], headers: Mapping[str, str], name: str, ttl_s: int, seed: int) -> None:
        self._urls = list(urls.values())
        self._http = plain_http.client(headers=dict(headers), timeout=CALL_S_MAX)
        self._name = name
        self._random = Random(f"{seed} {name}")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"holder of {name}", daemon=True)
        self._renewed_s = 0.0
        self.ttl_s = ttl_s
        self.ends: list[Ended] = []
        self.renewals = 0
        self.longest_gap_s = 0.0
        """Between two renewals that were answered."""

    def __enter__(self) -> Self:
        until("the instance is registered", self._register)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._http.close()

    def require_kept(self) -> None:
        """Fails unless it was there all the time, and was renewed so often that it had to be."""
        assert self.longest_gap_s < self.ttl_s, f"no renewal was answered for {self.longest_gap_s:.2f} s"
        assert self.ends == []

    def let_go(self) -> Ended:
        """No more heartbeats; returns when it was seen to be gone. Fails when that is too early or too late."""
        self._stop()
        ended = until(
            f"{self._name} ends, {self.ttl_s} s after its last heartbeat", self._seen_gone, self.ttl_s + LATE_S_MAX
        )
        assert ended.after_s >= self.ttl_s, f"{ended} of an instance that lives for {self.ttl_s} s"
        return ended

    def require_no_early_end(self) -> None:
        early = [ended for ended in self.ends if ended.after_s < self.ttl_s]
        assert not early, f"{early} of an instance that lives for {self.ttl_s} s"

    def _stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S_MAX)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._renew()
            ended = self._seen_gone()
            if ended is not None:
                self.ends.append(ended)
                self._register()
            self._stopping.wait(HEARTBEAT_INTERVAL_S)

    def _renew(self) -> None:
        body = {"instances": [{"service": SERVICE, "id": self._name}]}
        reply = self._ask("POST", "/v1/registry/heartbeat", json=body)
        if reply.outcome is Outcome.DONE and reply.body["renewed"] == 1:
            self._on_renewed(reply)

    def _register(self) -> bool:
        reply = self._ask("PUT", self._path, json={"host": "127.0.0.1", "port": 9, "ttl_s": self.ttl_s})
        if reply.outcome is not Outcome.DONE:
            return False
        self._renewed_s = reply.began_s
        return True

    def _on_renewed(self, reply: Reply) -> None:
        # A grant whose answer was lost may have been the newer one, so gaps count from what was answered.
        self.longest_gap_s = max(self.longest_gap_s, reply.ended_s - self._renewed_s)
        self._renewed_s = reply.began_s
        self.renewals += 1

    def _seen_gone(self) -> Ended | None:
        reply = self._ask("GET", self._path)
        return Ended(self._renewed_s, reply.ended_s) if reply.outcome is Outcome.ABSENT else None

    def _ask(self, method: str, path: str, **options: object) -> Reply:
        return ask(self._http, method, self._random.choice(self._urls) + path, **options)

    @property
    def _path(self) -> str:
        return f"/v1/registry/default/services/{SERVICE}/instances/{self._name}"
