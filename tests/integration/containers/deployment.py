"""The platform as docker-compose deploys it, on a real engine, and what the engine tells of it."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from support import plain_http
from support.platform import eventually
from support.repository import ROOT

IMAGE_TAG = "test"
"""Of its own, so that an image that somebody deploys is never replaced; it is kept, as the engine's cache is."""
COMMAND_S_MAX = 120.0
BUILD_S_MAX = 900.0
HEALTHY_S_MAX = 120.0

PROCESSES = ("node-1", "node-2", "node-3", "gateway", "order", "inventory")
STEPS = ("init", "setup", "order-migrate", "inventory-migrate")


@dataclass(frozen=True)
class Engine:
    """`compose`: how it is called here, as a plugin of docker or as a command of its own."""

    version: str
    compose: tuple[str, ...]


def find_engine() -> Engine | str:
    """The engine that answers here, or why there is none to use."""
    if shutil.which("docker") is None:
        return "there is no docker command on this machine"
    try:
        asked = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except subprocess.TimeoutExpired:
        return "the container engine does not answer"
    version = asked.stdout.strip()
    if asked.returncode or not version:
        said = asked.stderr.strip().splitlines() or ["it gave no version"]
        return f"no container engine answers: {said[-1]}"
    for compose in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(compose[0]) is None:
            continue
        if subprocess.run([*compose, "version"], capture_output=True, check=False, timeout=30).returncode == 0:
            return Engine(version, compose)
    return "neither docker compose nor docker-compose is installed"


@dataclass
class Deployment:
    """One compose project of the repository's own files, published on a free port of loopback."""

    engine: Engine
    project: str
    healthy_after_s: dict[str, float] = field(default_factory=dict)
    http: httpx.Client = field(default_factory=lambda: plain_http.client(timeout=10))

    def compose(self, *arguments: str, stdin: str = "", within_s: float = COMMAND_S_MAX) -> str:
        """What docker-compose prints. Fails with what it said when it fails."""
        return self._run([*self.engine.compose, "-p", self.project, *arguments], stdin, within_s)

    def docker(self, *arguments: str) -> str:
        return self._run(["docker", *arguments], "", COMMAND_S_MAX)

    def _run(self, command: list[str], stdin: str, within_s: float) -> str:
        environment = {**os.environ, "QUORATE_TAG": IMAGE_TAG, "QUORATE_PUBLISH": "127.0.0.1:"}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=within_s,
        )
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def build(self) -> float:
        """How many seconds it took; little when the engine has built the same before."""
        began_s = time.monotonic()
        self.compose("build", "init", within_s=BUILD_S_MAX)
        return time.monotonic() - began_s

    def up(self) -> float:
        """Start, and wait until every process is healthy; returns after how many seconds."""
        began_s = time.monotonic()
        self.healthy_after_s.clear()
        self.compose("up", "-d", within_s=HEALTHY_S_MAX)
        try:
            eventually("every process is healthy", lambda: self._note_health(began_s), HEALTHY_S_MAX)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--no-color', '--tail', '40')}") from None
        return time.monotonic() - began_s

    def _note_health(self, began_s: float) -> bool:
        for name in PROCESSES:
            if self.inspect(name)["State"].get("Health", {}).get("Status") == "healthy":
                self.healthy_after_s.setdefault(name, time.monotonic() - began_s)
        return len(self.healthy_after_s) == len(PROCESSES)

    def down(self) -> None:
        """Remove everything of this project, its data too."""
        self.compose("down", "--volumes", "--remove-orphans")

    def left_over(self) -> list[str]:
        """What the engine still has of this project."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [line for kind in kinds for line in self.docker(*kind, "--quiet", "--filter", label).split()]

    def container(self, service: str) -> str:
        """The id of a service's one container, running or not."""
        labels = f"label=com.docker.compose.project={self.project}", f"label=com.docker.compose.service={service}"
        found = self.docker("ps", "--all", "--quiet", "--filter", labels[0], "--filter", labels[1]).split()
        assert len(found) == 1, f"{service} has {len(found)} containers"
        return found[0]

    def inspect(self, service: str) -> dict[str, Any]:
        (found,) = json.loads(self.docker("inspect", self.container(service)))
        return dict(found)

    def python(self, service: str, source: str) -> Any:
        """Run `source` inside a running container; what it prints, as JSON."""
        return json.loads(self.compose("exec", "-T", service, "python", "-c", source))

    def quorate(self, *arguments: str, stdin: str = "") -> str:
        """The operator's command, in a container of its own."""
        return self.compose("run", "--rm", "-T", "quorate", *arguments, stdin=stdin)

    def cluster(self) -> dict[str, Any]:
        return dict(json.loads(self.quorate("cluster", "status", "--json")))

    @property
    def url(self) -> str:
        """Where the gateway is published. The engine chooses the port anew whenever the container is made."""
        return "http://" + self.compose("port", "gateway", "8080").strip()

    def image(self) -> dict[str, Any]:
        (found,) = json.loads(self.docker("image", "inspect", f"quorate:{IMAGE_TAG}"))
        return dict(found)

    def memory(self) -> dict[str, str]:
        """What each process uses, as the engine shows it: used / limit."""
        ids = {self.container(name): name for name in PROCESSES}
        lines = self.docker("stats", "--no-stream", "--format", "{{.ID}} {{.MemUsage}}", *ids).splitlines()
        return {ids[line.split()[0]]: line.partition(" ")[2] for line in lines}


def place_order(deployment: Deployment, url: str, quantity: int = 1) -> str:
    """Through the published port; the order's id."""
    order = {"customer": "c-1", "lines": [{"sku": "widget", "quantity": quantity}]}
    answer = deployment.http.post(url + "/orders", json=order)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def final_status(deployment: Deployment, url: str, order: str) -> str:
    """What becomes of an order."""

    def ended() -> str | None:
        status = str(deployment.http.get(f"{url}/orders/{order}").json()["status"])
        return None if status == "PENDING" else status

    return eventually(f"order {order} is decided", ended)
