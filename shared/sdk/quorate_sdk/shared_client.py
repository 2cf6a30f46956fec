"""The client that module-level calls share, made from the environment on first use."""

from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from quorate_sdk.client import Client
from quorate_sdk.live_settings import LiveSettings

ModelT = TypeVar("ModelT", bound=BaseModel)

_clients: list[Client] = []


def default_client() -> Client:
    """One for the process; a new one after the former was closed. Raises SettingsError for a bad environment."""
    if not _clients or _clients[0].closed:
        _clients[:] = [Client.from_environment()]
    return _clients[0]


def config(model: type[ModelT], key: str) -> LiveSettings[ModelT]:
    """`Client.config` of the default client."""
    return default_client().config(model, key)


def http(**options: Any) -> httpx.AsyncClient:
    """`Client.http` of the default client."""
    return default_client().http(**options)
