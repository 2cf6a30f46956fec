"""One object with all that a service needs of the platform: discovery, live settings, HTTP by name, registration."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel
from quorate_core.errors import SettingsError

from quorate_sdk.calls.services import Services
from quorate_sdk.config_watcher import ConfigWatcher
from quorate_sdk.control_plane import ControlPlane
from quorate_sdk.discovery import Discovery
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.heartbeat import DRAIN_S_MAX
from quorate_sdk.leaving import SIGNALS
from quorate_sdk.live_settings import LiveSettings
from quorate_sdk.registration import Registration, default_instance_id, validated_spec
from quorate_sdk.service_http import ServiceTransport, call_options, connections, http_client, split_options
from quorate_sdk.wire import DEFAULT_NAMESPACE, TTL_S_DEFAULT, InstanceStatus

ModelT = TypeVar("ModelT", bound=BaseModel)

DEFAULT_ENDPOINT = "http://127.0.0.1:8501"
START_WAIT_S = 2.0
"""`start` waits so long for a first copy of registry and settings; after it they come when they come."""
REGISTER_WAIT_S = 2.0

log = ForkSafeLogger(__name__)


class Client:
    """Use as `async with`, or call `start` and, at the end, `drain` and `close`.

    `config` and `http` may be called before `start`. With `cache_dir`, the last good copies are kept there and found
    at the next start, so that the service starts without a control plane.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        token: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        cache_dir: Path | None = None,
        *,
        zone: str = "",
    ) -> None:
        """`zone`: where this process stands; instances of the same zone are preferred. Raises SettingsError for
        endpoints that are no URLs."""
        self.namespace = namespace
        self.zone = zone
        self._endpoints = tuple(endpoints)
        self._token = token
        self.control_plane = ControlPlane(endpoints, token)
        self.discovery = Discovery(self.control_plane, namespace, cache_file=_in(cache_dir, "discovery.json"))
        self.config_watcher = ConfigWatcher(self.control_plane, namespace, cache_file=_in(cache_dir, "settings.json"))
        self._settings: dict[tuple[str, type[BaseModel]], LiveSettings[Any]] = {}
        self._http_clients: list[httpx.AsyncClient] = []
        self._transports: list[ServiceTransport] = []
        self._registrations: list[Registration] = []
        self._started = False
        self._owner_pid = os.getpid()
        self.closed = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """From QUORATE_ENDPOINTS (with commas), QUORATE_TOKEN_FILE, QUORATE_NAMESPACE, QUORATE_CACHE_DIR and
        QUORATE_ZONE; the default endpoint is a node on this machine. Raises SettingsError."""
        environment = os.environ if environment is None else environment
        cache_dir = environment.get("QUORATE_CACHE_DIR")
        return cls(
            *connection_from(environment), Path(cache_dir) if cache_dir else None,
            zone=environment.get("QUORATE_ZONE", ""),
        )  # fmt: skip

    @property
    def is_owned(self) -> bool:
        """Whether this process made it; false in a forked child, which must make one of its own."""
        return self._owner_pid == os.getpid()

    def config(self, model: type[ModelT], key: str) -> LiveSettings[ModelT]:
        """Settings that follow the document `key` (`group/key`); the same object for the same model and key."""
        held = self._settings.get((key, model))
        if held is None:
            held = self._settings[key, model] = LiveSettings(model, key, self.config_watcher)
        return held

    def http(self, **options: Any) -> httpx.AsyncClient:
        """A client for which `http://inventory/…` is the service `inventory`; `close` closes it. Make one and keep it:
        it holds the connections, and what it has learned of services.

        `options` are httpx.AsyncClient's, except those that replace its way to a server, such as transport, mounts and
        proxy, for which it raises TypeError; and ours: `balance` (a name of `calls.options.Balance`), `calls`
        (`CallSettings`: retries, breaker, ejection), `zone` (else QUORATE_ZONE), `breaker_listeners`."""
        for_connections, for_client = split_options(options)
        client = http_client(self.transport(**for_connections), **for_client)
        self._http_clients.append(client)
        return client

    def transport(self, **options: Any) -> ServiceTransport:
        """What finds instances for `http`; `close` closes it. `options`: service_http's CONNECTION_OPTIONS and
        CALL_OPTIONS."""
        for_services, for_connections = call_options({"zone": self.zone, **options})
        transport = ServiceTransport(
            self.discovery, Services(self.discovery, **for_services), connections(**for_connections)
        )
        self._transports.append(transport)
        return transport

    async def start(self, wait_s: float = START_WAIT_S) -> None:
        """Begin to watch; waits up to `wait_s` seconds for a first copy, and goes on without one."""
        if self._started:
            return
        self._started = True
        await self.discovery.start()
        await self.config_watcher.start()
        known = await asyncio.gather(self.discovery.ready(wait_s), self.config_watcher.ready(wait_s))
        if not all(known):
            log.warning("started_without_control_plane", endpoints=list(self._endpoints))

    async def register(
        self,
        *,
        service: str,
        host: str,
        port: int,
        instance_id: str | None = None,
        version: str = "",
        metadata: Mapping[str, str] | None = None,
        weight: int = 100,
        zone: str = "",
        scheme: str = "http",
        ttl_s: int = TTL_S_DEFAULT,
        status: InstanceStatus = InstanceStatus.UP,
        when_listening: bool = False,
        wait_s: float = REGISTER_WAIT_S,
    ) -> Registration:
        """Register this process. Waits up to `wait_s` seconds for the registry, and goes on trying after it.

        `host` and `port` are where others reach it. `instance_id`: unique within the service; made of this machine's
        name and the port when not given. `weight`: 0 takes no traffic, all others count the same so far. `zone` and
        `version` are told to others and decide nothing. `ttl_s`: seconds after the last heartbeat until it counts as
        gone; heartbeats come three times as often. `status`: only UP takes traffic; `Registration.change` changes it.
        `when_listening`: not before something accepts connections at `host` and `port`.

        Raises SettingsError for what the registry would refuse.
        """
        spec = validated_spec(
            {
                "host": host, "port": port, "scheme": scheme, "weight": weight, "zone": zone, "version": version,
                "metadata": dict(metadata or {}), "status": status, "ttl_s": ttl_s,
            }
        )  # fmt: skip
        registration = Registration(
            self._endpoints, self._token, service, instance_id or default_instance_id(service, port), spec,
            namespace=self.namespace, when_listening=when_listening,
        )  # fmt: skip
        registration.start()
        self._registrations.append(registration)
        if wait_s > 0:
            await registration.wait_registered(wait_s)
        return registration

    @contextmanager
    def stop_signals(self, timeout_s: float = DRAIN_S_MAX) -> Iterator[Callable[[], Awaitable[None]]]:
        """For a program of its own, which serves without a server such as uvicorn:

            with client.stop_signals() as told_to_stop:
                await client.register(service="greeter", host="127.0.0.1", port=8000)
                await told_to_stop()

        It returns after SIGTERM or SIGINT, when it has left the registry (`drain`), and what is there may be finished.
        Enter it in the main thread, before it registers: a signal that came in between would end the program.
        """
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, told.set)

        async def told_to_stop() -> None:
            await told.wait()
            await self.drain(timeout_s)

        try:
            yield told_to_stop
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def drain(self, timeout_s: float = DRAIN_S_MAX) -> None:
        """Leave the registry, so that no new request comes; go on serving what is there. Bounded by `timeout_s`."""
        leaving, self._registrations = self._registrations, []
        await asyncio.gather(*(registration.drain(timeout_s) for registration in leaving))

    async def close(self) -> None:
        """Drain what is still registered, end all watches, and close all connections."""
        self.closed = True
        await self.drain()
        await self.discovery.stop()
        await self.config_watcher.stop()
        for client in self._http_clients:
            await client.aclose()
        for transport in self._transports:
            await transport.aclose()
        await self.control_plane.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def connection_from(environment: Mapping[str, str]) -> tuple[list[str], str | None, str]:
    """Endpoints, token and namespace, as `Client.from_environment` says. Raises SettingsError."""
    listed = environment.get("QUORATE_ENDPOINTS", DEFAULT_ENDPOINT).split(",")
    return (
        [url.strip() for url in listed if url.strip()],
        read_token(environment.get("QUORATE_TOKEN_FILE")),
        environment.get("QUORATE_NAMESPACE", DEFAULT_NAMESPACE),
    )


def read_token(path: str | None) -> str | None:
    """The token in the file at `path`; None without a path. Raises SettingsError when it cannot be read."""
    if not path:
        return None
    try:
        return Path(path).read_text().strip() or None
    except OSError as error:
        raise SettingsError(f"the token file {path} cannot be read: {error.strerror}") from error


def _in(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name
