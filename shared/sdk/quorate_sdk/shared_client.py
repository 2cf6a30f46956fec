"""The client that module-level calls share, made from the environment on first use.

A module makes its settings and its HTTP client once, when it is imported; an application may start and stop several
times in a process, as in tests. So these objects belong to no client: they go on to the next one when the former is
closed.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel

from quorate_sdk.client import Client
from quorate_sdk.service_http import ServiceTransport, http_client, split_options
from quorate_sdk.subscribers import Subscribers

ModelT = TypeVar("ModelT", bound=BaseModel)

_clients: list[Client] = []
_settings: dict[tuple[str, type[BaseModel]], "SharedSettings[Any]"] = {}


def default_client() -> Client:
    """One for the process; a new one after the former was closed, and in a forked child, which leaves its parent's
    alone. Raises SettingsError for a bad environment."""
    if not _clients or _clients[0].closed or not _clients[0].is_owned:
        _clients[:] = [Client.from_environment()]
        for settings in _settings.values():
            settings.follow(_clients[0])
    return _clients[0]


def forget_default_client() -> None:
    """Have the next use make a new one, from the environment as it is by then. The former is not closed: it is for
    tests, which may be without the event loop that it belongs to."""
    _clients.clear()


class SharedSettings(Generic[ModelT]):
    """`LiveSettings` of the default client, whichever that is at the time. Once it is closed they stand still, until
    the next one is made."""

    def __init__(self, model: type[ModelT], name: str, client: Client) -> None:
        """Raises SettingsError as `LiveSettings` does."""
        self.name = name
        self._model = model
        self._subscribers: Subscribers[ModelT, ModelT] = Subscribers(name)
        self._live = client.config(model, name)
        self._live.subscribe(self._subscribers.tell)

    def follow(self, client: Client) -> None:
        self._live = client.config(self._model, self.name)
        self._live.subscribe(self._subscribers.tell)

    @property
    def current(self) -> ModelT:
        return self._live.current

    @property
    def version(self) -> int:
        return self._live.version

    @property
    def revision(self) -> int:
        return self._live.revision

    @property
    def last_error(self) -> str | None:
        return self._live.last_error

    def subscribe(self, callback: Callable[[ModelT, ModelT], None]) -> Callable[[], None]:
        """As `LiveSettings.subscribe`."""
        return self._subscribers.add(callback)


class SharedTransport(httpx.AsyncBaseTransport):
    """Finds instances by the default client, whichever that is at the time."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._found: tuple[Client, ServiceTransport] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        client = default_client()
        if self._found is None or self._found[0] is not client:
            self._found = client, client.transport(**self._options)  # that of the former client is closed with it
        return await self._found[1].handle_async_request(request)

    async def aclose(self) -> None:
        if self._found is not None:
            await self._found[1].aclose()


def config(model: type[ModelT], key: str) -> SharedSettings[ModelT]:
    """`Client.config` of the default client; the same object for the same model and key."""
    client = default_client()
    held = _settings.get((key, model))
    if held is None:
        held = _settings[key, model] = SharedSettings(model, key, client)
    return held


def http(**options: Any) -> httpx.AsyncClient:
    """`Client.http` of the default client, whichever that is at the time of a request."""
    default_client()  # a bad environment is told here
    for_connections, for_client = split_options(options)
    return http_client(SharedTransport(for_connections), **for_client)
