"""What a node hands to an app, and what it wants of it.

An app is found by the entry-point group `quorate.apps` (name to class, called without arguments), so that apps
need not know the node, nor each other. What not every app can do is a protocol of its own: `chronicle.Chronicler`,
`chronicle.Alarming`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI
from quorate_core.clock import Clock
from quorate_core.tasks import TaskOwner

from quorate_store.port import Store

APPS_GROUP = "quorate.apps"


@dataclass(frozen=True, slots=True)
class FleetNode:
    """A node that is up: its key is held by a lease. `url` is its advertised HTTP address."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class FleetAnswer:
    """What one node said. `body` is decoded JSON; when the node did not answer it is None and `error` says why."""

    node: FleetNode
    body: Any = None
    error: str | None = None


class Fleet(Protocol):
    """The nodes that are up. For soft state that only describes the present, and is never in the log."""

    async def nodes(self) -> Sequence[FleetNode]: ...

    async def ask_all(self, path: str, timeout_s: float = 2.0) -> Sequence[FleetAnswer]:
        """GET `path` of every node, this one included, at the same time; who did not answer is in the result."""
        ...


@dataclass(frozen=True, slots=True)
class AppContext:
    """`stopping` is set when streams must end; tasks started with `tasks` are ended after `App.stop`."""

    node_name: str
    store: Store
    fleet: Fleet
    tasks: TaskOwner
    clock: Clock
    stopping: asyncio.Event


class App(Protocol):
    name: str

    async def start(self, context: AppContext) -> None:
        """Begin background work. Must not wait for the store to have a leader."""
        ...

    def mount(self, api: FastAPI) -> None:
        """Add routes, under `/v1/<something of its own>`. Called after `start`."""
        ...

    def ready(self) -> str | None:
        """Why it cannot serve yet, or None."""
        ...

    async def stop(self) -> None: ...
