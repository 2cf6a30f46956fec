"""The whole platform as a user starts it: `quorate up` in a folder of its own, on free ports, and hands to break it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from support import plain_http

START_S_MAX = 90.0
STOP_S_MAX = 40.0
POLL_INTERVAL_S = 0.05

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T | None], within_s: float = 20.0) -> T:
    """The first truthy answer of `probe`. Fails with its last answer or error after `within_s` seconds."""
    deadline_s = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline_s:
        try:
            last = answer = probe()
            if answer:
                return answer
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            last = error
        time.sleep(POLL_INTERVAL_S)
    raise AssertionError(f"not within {within_s} s: {what}; last seen: {last!r}")


@dataclass
class Platform:
    """A running `quorate up`. `state` is what it publishes in run/state.json."""

    root: Path
    process: subprocess.Popen[bytes] | None = None
    http: httpx.Client = field(default_factory=lambda: plain_http.client(timeout=10))

    def start(self, *options: str) -> float:
        """Start and wait until it says that it is ready; returns how many seconds that took."""
        started_s = time.monotonic()
        output = (self.root / "up.out").open("ab")
        with output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "quorate_cli", "up", "--root", str(self.root), "--ports", "auto", *options],
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        eventually("the platform is ready", self._is_ready, START_S_MAX)
        return time.monotonic() - started_s

    def _is_ready(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"quorate up ended with {self.process.returncode}:\n{self.output()}")
        state = self.state()
        return bool(state.get("state") == "ready" and self.process and state["pid"] == self.process.pid)

    def output(self) -> str:
        return (self.root / "up.out").read_text(errors="replace")

    def state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.root / "run" / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def stop(self) -> int:
        """Ctrl-C, and wait for the end; returns the exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(STOP_S_MAX)
        self.process = None
        return status

    def cli(self, *arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the quorate command against this platform."""
        own = {**os.environ, "QUORATE_ENDPOINTS": ",".join(self.endpoints), "COLUMNS": "200", **environment}
        return subprocess.run(
            [sys.executable, "-m", "quorate_cli", *arguments],
            env=own, cwd=self.root, capture_output=True, text=True, input=stdin, timeout=60, check=False,
        )  # fmt: skip

    @property
    def gateway(self) -> str:
        return str(self.state()["gateway"])

    @property
    def endpoints(self) -> list[str]:
        return list(self.state()["endpoints"])

    def pids(self, kind: str) -> dict[str, int]:
        parts = self.state()["parts"]
        return {name: part["pid"] for name, part in parts.items() if part["kind"] == kind and part["pid"]}

    def kill(self, name: str) -> None:
        """kill -9 one part, by its process id."""
        os.kill(self.state()["parts"][name]["pid"], signal.SIGKILL)

    def leader(self) -> str:
        """The node that leads now, as a majority agrees."""

        def ask() -> str | None:
            for endpoint in self.endpoints:
                try:
                    return str(self.http.get(f"{endpoint}/v1/cluster/status").json()["leader"]) or None
                except httpx.HTTPError:
                    continue
            return None

        return eventually("there is a leader", ask)

    def wait_restarted(self, name: str, former_pid: int) -> None:
        eventually(
            f"{name} is back",
            lambda: (part := self.state()["parts"][name])["pid"] not in (None, former_pid) and part["state"] == "ready",
            30,
        )

    def place(self, quantity: int, sku: str = "widget") -> httpx.Response:
        body = {"customer": "c-1", "lines": [{"sku": sku, "quantity": quantity}]}
        return self.http.post(f"{self.gateway}/orders", json=body)

    def order(self, order_id: str) -> dict[str, Any]:
        answer = self.http.get(f"{self.gateway}/orders/{order_id}")
        answer.raise_for_status()
        return dict(answer.json())

    def final(self, order_id: str, within_s: float = 30.0) -> dict[str, Any]:
        """The order once it is no longer PENDING."""

        def ended() -> dict[str, Any] | None:
            found = self.order(order_id)
            return found if found["status"] != "PENDING" else None

        return eventually(f"order {order_id} ends", ended, within_s)

    def stock(self, sku: str = "widget") -> dict[str, int]:
        answer = self.http.get(f"{self.gateway}/stock/{sku}")
        answer.raise_for_status()
        return dict(answer.json())


@dataclass
class Outcomes:
    """What a load saw: accepted order ids in order, failures as text, and how many were tried."""

    accepted: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    progressed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def load(platform: Platform, clients: int = 3, orders_max: int = 5_000) -> Iterator[Outcomes]:
    """Orders of one widget each, from `clients` threads, until the block ends; bounded by `orders_max`."""
    outcomes, stopping, lock = Outcomes(), threading.Event(), threading.Lock()
    gateway = platform.gateway
    body = {"customer": "load", "lines": [{"sku": "widget", "quantity": 1}]}

    def run() -> None:
        with plain_http.client(base_url=gateway, timeout=10) as client:
            while not stopping.is_set() and len(outcomes.accepted) < orders_max:
                try:
                    answer = client.post("/orders", json=body)
                    good = answer.status_code == 202
                    text = answer.json()["id"] if good else f"{answer.status_code} {answer.text}"
                except httpx.HTTPError as error:
                    good, text = False, repr(error)
                with lock:
                    (outcomes.accepted if good else outcomes.failures).append(text)
                outcomes.progressed.set()
                stopping.wait(0.005)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_for_orders(outcomes, 5)
        yield outcomes
    finally:
        stopping.set()
        for thread in threads:
            thread.join(30)


def wait_for_orders(outcomes: Outcomes, more: int, within_s: float = 30.0) -> None:
    """Until the load has had `more` further orders accepted."""
    target = len(outcomes.accepted) + more
    eventually(f"{more} more orders are accepted", lambda: len(outcomes.accepted) >= target, within_s)
