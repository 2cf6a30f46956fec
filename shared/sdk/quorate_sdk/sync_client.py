"""The platform for programs without an event loop: scripts, Flask, Django, gunicorn's sync workers.

    with quorate.SyncClient() as platform:
        settings = platform.config(Settings, "greeter/settings.yaml")
        http = platform.http()
        http.get("http://inventory/stock/widget").json()

Theory of operation. A thread of its own runs an event loop with a `Client`, which watches the registry and the config
center there. Callers read what it has published: a mapping of services to instances, which is replaced and never
changed, and settings, whose `current` is one reference. Calls themselves are made by httpx's synchronous half in the
caller's thread.

All of that is of one process. In a forked child (gunicorn with `--preload`, multiprocessing) the thread is not there:
whoever asks there first starts another one, and what the child was handed over, clients and settings, goes on to work
with it. The parent's is left alone.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx
from pydantic import BaseModel
from quorate_core.errors import Unavailable

from quorate_sdk.calls.services import Services
from quorate_sdk.client import START_WAIT_S, Client
from quorate_sdk.heartbeat import DRAIN_S_MAX
from quorate_sdk.live_settings import LiveSettings
from quorate_sdk.registration import Registration
from quorate_sdk.service_http import READY_WAIT_S, call_options, split_options
from quorate_sdk.sync_http import SyncServiceTransport, sync_connections, sync_http_client
from quorate_sdk.wire import Instance

STOP_S_MAX = 15.0
"""For `close`: the drain, and the end of the watches."""

ModelT = TypeVar("ModelT", bound=BaseModel)
T = TypeVar("T")
MakeClient = Callable[[], Client]


class SyncClient:
    """Use as a context manager, or call `close` at the end. Methods may be called from any thread."""

    def __init__(self, make: MakeClient = Client.from_environment) -> None:
        """`make` is called in the event loop's thread, once a process, when it is first needed; then what it raises is
        raised."""
        self._make = make
        self._runtime: _Runtime | None = None
        self._settings: dict[tuple[str, type[BaseModel]], SyncSettings[Any]] = {}
        self._https: list[httpx.Client] = []
        self._lock = threading.Lock()
        self._closed = False
        _handed_over.add(self)

    def http(self, **options: Any) -> httpx.Client:
        """As `Client.http`, for threads. Make one and keep it."""
        for_transport, for_client = split_options(options)
        for_services, for_connections = call_options(for_transport)
        client = sync_http_client(_Transport(self, for_services, for_connections), **for_client)
        self._https.append(client)
        return client

    def config(self, model: type[ModelT], key: str) -> "SyncSettings[ModelT]":
        """As `Client.config`; the same object for the same model and key."""
        runtime = self._running()
        with self._lock:
            held = self._settings.get((key, model))
            if held is None:
                held = self._settings[key, model] = SyncSettings(self, model, key)
        held.follow(runtime)
        return held

    def instances(self, service: str) -> Sequence[Instance]:
        """Those that take traffic first, then by id."""
        return self._running().instances(service)

    def register(self, **arguments: Any) -> Registration:
        """As `Client.register`."""
        runtime = self._running()
        return runtime.call(runtime.client.register(**arguments))

    def drain(self, timeout_s: float = DRAIN_S_MAX) -> None:
        """Leave the registry, and go on serving what is there."""
        runtime = self._running()
        runtime.call(runtime.client.drain(timeout_s))

    def wait_ready(self, timeout_s: float = READY_WAIT_S) -> bool:
        """Whether there is a copy of the registry by then."""
        return self._running().known.wait(timeout_s)

    def close(self) -> None:
        """Drain what is still registered, end the thread, and close all connections."""
        with self._lock:
            runtime, self._runtime, self._closed = self._runtime, None, True
        for client in self._https:
            client.close()
        if runtime is not None:
            runtime.stop()

    def _running(self) -> "_Runtime":
        runtime = self._runtime
        if runtime is not None:
            return runtime
        with self._lock:
            if self._closed:
                raise Unavailable("this client is closed")
            if self._runtime is None:
                self._runtime = _Runtime(self._make)
                for settings in self._settings.values():
                    settings.follow(self._runtime)
            return self._runtime

    def forked(self) -> None:
        """In the child: neither the thread nor whoever may have held the lock is there."""
        self._runtime = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncSettings(Generic[ModelT]):
    """`LiveSettings` for threads, and over forks."""

    def __init__(self, owner: SyncClient, model: type[ModelT], key: str) -> None:
        self.name = key
        self._owner = owner
        self._model = model
        self._found: tuple[_Runtime, LiveSettings[ModelT]] | None = None

    def follow(self, runtime: "_Runtime") -> LiveSettings[ModelT]:
        found = self._found
        if found is None or found[0] is not runtime:
            found = self._found = runtime, runtime.config(self._model, self.name)
        return found[1]

    @property
    def current(self) -> ModelT:
        """Always a valid model."""
        return self._live.current

    @property
    def version(self) -> int:
        return self._live.version

    @property
    def last_error(self) -> str | None:
        return self._live.last_error

    def subscribe(self, callback: Callable[[ModelT, ModelT], None]) -> Callable[[], None]:
        """Call `callback(old, new)` when the values have changed, in the client's own thread. Returns what ends it."""
        live = self._live
        runtime = self._owner._running()  # noqa: SLF001 - they are one
        return runtime.do(lambda: live.subscribe(callback))

    @property
    def _live(self) -> LiveSettings[ModelT]:
        return self.follow(self._owner._running())  # noqa: SLF001 - they are one


class _Runtime:
    """The thread of one process, its event loop, and the client there. What it publishes is read without a lock."""

    def __init__(self, make: MakeClient) -> None:
        """Returns when the client has a first copy of what it watches, or after START_WAIT_S."""
        self.known = threading.Event()
        """Set once there is a copy of the registry."""
        self.namespace = ""
        self._published: Mapping[str, tuple[Instance, ...]] = MappingProxyType({})
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._began = threading.Event()
        self._failure: BaseException | None = None
        self._stopping = asyncio.Event()
        self.client: Client
        self._thread = threading.Thread(target=self._run, name="quorate", daemon=True)
        self._thread.start()
        self._wait_begun()

    def _wait_begun(self) -> None:
        self._began.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    @property
    def revision(self) -> int:
        return self.client.discovery.revision

    def instances(self, service: str) -> tuple[Instance, ...]:
        return self._published.get(service, ())

    def config(self, model: type[ModelT], key: str) -> LiveSettings[ModelT]:
        return self.do(lambda: self.client.config(model, key))

    def do(self, act: Callable[[], T]) -> T:
        """Do it in the event loop's thread."""

        async def acting() -> T:
            return act()

        return self.call(acting())

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STOP_S_MAX)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:  # who waits for the beginning raises it
            self._failure = error
        finally:
            self._began.set()
            self._loop.close()

    async def _main(self) -> None:
        self.client = self._make()
        try:
            self.namespace = self.client.namespace
            self.client.discovery.subscribe(self._publish)
            await self.client.start(START_WAIT_S)
            if self.client.discovery.revision:
                self._publish(set(self.client.discovery.services))
            self._began.set()
            await self._stopping.wait()
        finally:
            await self.client.close()

    def _publish(self, changed: set[str]) -> None:
        published = dict(self._published)
        for service in changed:
            found = self.client.discovery.instances(service)
            if found:
                published[service] = found
            else:
                published.pop(service, None)
        self._published = MappingProxyType(published)
        self.known.set()


class _Transport(httpx.BaseTransport):
    """Calls by the runtime of the process that it is used in."""

    def __init__(self, owner: SyncClient, for_services: dict[str, Any], for_connections: dict[str, Any]) -> None:
        self._owner = owner
        self._for_services = for_services
        self._for_connections = for_connections
        self._found: tuple[_Runtime, SyncServiceTransport] | None = None
        self._making = threading.Lock()
        _handed_over.add(self)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._transport().handle_request(request)

    def _transport(self) -> SyncServiceTransport:
        runtime = self._owner._running()  # noqa: SLF001 - they are one
        found = self._found
        if found is None or found[0] is not runtime:
            with self._making:
                found = self._found
                if found is None or found[0] is not runtime:
                    services = Services(runtime, **{"zone": runtime.client.zone, **self._for_services})
                    connections = sync_connections(**self._for_connections)
                    transport = SyncServiceTransport(services, lambda: _wait(runtime), connections)
                    found = self._found = runtime, transport
        return found[1]

    def forked(self) -> None:
        """In the child: connections are the parent's, and must not be written to, nor closed with a farewell."""
        self._found = None
        self._making = threading.Lock()

    def close(self) -> None:
        if self._found is not None:
            self._found[1].close()


def _wait(runtime: _Runtime) -> None:
    runtime.known.wait(READY_WAIT_S)


_handed_over: weakref.WeakSet[SyncClient | _Transport] = weakref.WeakSet()
"""What a forked child begins anew."""


def _forked() -> None:
    for each in _handed_over:
        each.forked()


os.register_at_fork(after_in_child=_forked)
