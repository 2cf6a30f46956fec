"""What a service developer installs: registration, discovery, live settings, and HTTP by service name.

    import quorate_sdk as quorate

    settings = quorate.config(Settings, "greeter/settings.yaml")    # settings.current follows the document
    http = quorate.http()                                           # http.get("http://inventory/stock/widget")
    app = FastAPI(lifespan=quorate.lifespan("greeter", port=8000))  # registers, heartbeats, drains

These three use one client made from the environment (`default_client`); `Client` is the same, given explicitly.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quorate_sdk.client import Client
    from quorate_sdk.config_watcher import ConfigWatcher
    from quorate_sdk.control_plane import ControlPlane, StreamEvent
    from quorate_sdk.discovery import Discovery
    from quorate_sdk.fastapi import lifespan
    from quorate_sdk.live_settings import LiveSettings
    from quorate_sdk.registration import Registration
    from quorate_sdk.shared_client import config, default_client, http
    from quorate_sdk.wire import Instance

__all__ = [
    "Client",
    "ConfigWatcher",
    "ControlPlane",
    "Discovery",
    "Instance",
    "LiveSettings",
    "Registration",
    "StreamEvent",
    "config",
    "default_client",
    "http",
    "lifespan",
]

_MODULES = {
    "Client": "client",
    "ConfigWatcher": "config_watcher",
    "ControlPlane": "control_plane",
    "Discovery": "discovery",
    "Instance": "wire",
    "LiveSettings": "live_settings",
    "Registration": "registration",
    "StreamEvent": "control_plane",
    "config": "shared_client",
    "default_client": "shared_client",
    "http": "shared_client",
    "lifespan": "fastapi",
}


def __getattr__(name: str) -> Any:
    """Imported on first use: who needs only the wire models does not pay for an HTTP client."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
