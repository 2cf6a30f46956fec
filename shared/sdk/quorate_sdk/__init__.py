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
    from quorate_sdk.calls.errors import CallNotSent, CallTimedOut, CircuitOpen, ServiceUnreachable
    from quorate_sdk.calls.options import CallSettings
    from quorate_sdk.calls.request_context import asgi_context, deadline, request_context, wsgi_context
    from quorate_sdk.client import Client
    from quorate_sdk.config_watcher import ConfigWatcher
    from quorate_sdk.control_plane import ControlPlane, StreamEvent
    from quorate_sdk.discovery import Discovery
    from quorate_sdk.fastapi import lifespan
    from quorate_sdk.live_settings import LiveSettings
    from quorate_sdk.registration import Registration
    from quorate_sdk.shared_client import config, default_client, http
    from quorate_sdk.sync_client import SyncClient
    from quorate_sdk.wire import Instance
    from quorate_sdk.wsgi_app import wsgi

__all__ = [
    "CallNotSent",
    "CallSettings",
    "CallTimedOut",
    "CircuitOpen",
    "Client",
    "ConfigWatcher",
    "ControlPlane",
    "Discovery",
    "Instance",
    "LiveSettings",
    "Registration",
    "ServiceUnreachable",
    "StreamEvent",
    "SyncClient",
    "asgi_context",
    "config",
    "deadline",
    "default_client",
    "http",
    "lifespan",
    "request_context",
    "wsgi",
    "wsgi_context",
]

_MODULES = {
    "CallNotSent": "calls.errors",
    "CallSettings": "calls.options",
    "CallTimedOut": "calls.errors",
    "CircuitOpen": "calls.errors",
    "Client": "client",
    "ConfigWatcher": "config_watcher",
    "ControlPlane": "control_plane",
    "Discovery": "discovery",
    "Instance": "wire",
    "LiveSettings": "live_settings",
    "Registration": "registration",
    "ServiceUnreachable": "calls.errors",
    "StreamEvent": "control_plane",
    "SyncClient": "sync_client",
    "asgi_context": "calls.request_context",
    "config": "shared_client",
    "deadline": "calls.request_context",
    "default_client": "shared_client",
    "http": "shared_client",
    "lifespan": "fastapi",
    "request_context": "calls.request_context",
    "wsgi": "wsgi_app",
    "wsgi_context": "calls.request_context",
}


def __getattr__(name: str) -> Any:
    """Imported on first use: who needs only the wire models does not pay for an HTTP client."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found
