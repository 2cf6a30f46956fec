"""Registering a WSGI application (Flask, Django, plain), which has no start and no end of its own to hook into.

    application = quorate.wsgi(application, "greeter", port=8000)

The application is registered by a thread as soon as something listens at its address, and leaves the registry at the
first SIGTERM or SIGINT, before the server hears of it (`quorate_sdk.leaving`); without a signal, when the interpreter
ends. gunicorn's workers share one registration (`quorate_sdk.worker_group`).

gunicorn's `--preload` imports the application in the master, which answers no request and forks the workers later.
There each worker registers after its fork, and the master never does. The worker sets its signal handlers later still,
so there they are taken at the first request, which must come in the main thread, as in `sync` workers.
"""

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from quorate_sdk.client import connection_from
from quorate_sdk.leaving import Departure
from quorate_sdk.registration import Registration, default_instance_id, validated_spec
from quorate_sdk.wire import TTL_S_DEFAULT
from quorate_sdk.worker_group import gunicorn_is_in

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def wsgi(
    app: WsgiApp,
    service: str,
    *,
    port: int,
    host: str = "127.0.0.1",
    instance_id: str | None = None,
    version: str = "",
    metadata: Mapping[str, str] | None = None,
    weight: int = 100,
    zone: str = "",
    ttl_s: int = TTL_S_DEFAULT,
    environment: Mapping[str, str] | None = None,
) -> "RegisteredWsgi":
    """`app`, registered for as long as this process serves it. The arguments are those of `quorate.lifespan`; the
    control plane is that of `environment` (`Client.from_environment`). Call it when the server imports the module, in
    the main thread. Raises SettingsError for what the registry would refuse."""
    endpoints, token, namespace = connection_from(os.environ if environment is None else environment)
    spec = validated_spec(
        {
            "host": host, "port": port, "weight": weight, "zone": zone, "version": version,
            "metadata": dict(metadata or {}), "ttl_s": ttl_s,
        }
    )  # fmt: skip

    def register() -> Registration:
        return Registration(
            endpoints, token, service, instance_id or default_instance_id(service, port), spec,
            namespace=namespace, when_listening=True,
        )  # fmt: skip

    return RegisteredWsgi(app, register)


class RegisteredWsgi:
    """The application, and its registration; None in a preloading master."""

    def __init__(self, app: WsgiApp, register: Callable[[], Registration]) -> None:
        self._app = app
        self._register = register
        self._departure: Departure | None = None
        self.registration: Registration | None = None
        if gunicorn_is_in("setup"):
            os.register_at_fork(after_in_child=self._begin)
        else:
            self._begin()
            self._take_signals()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._departure is None:
            self._take_signals()
        return self._app(environ, start_response)

    def leave(self) -> None:
        """Leave the registry; requests are answered as before. Does nothing in a process that has forked from this."""
        if self.registration is not None:
            self.registration.leave()

    def _begin(self) -> None:
        if self.registration is not None:
            return  # a worker's own child, which serves nobody
        self.registration = self._register()
        self.registration.start()
        atexit.register(self.leave)

    def _take_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._departure = Departure(lambda _: self.leave())
            self._departure.take()
