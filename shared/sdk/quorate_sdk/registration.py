"""Registering one instance of a service, keeping it registered, and draining it."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from quorate_core.errors import SettingsError

from quorate_sdk.control_plane import BlockingControlPlane
from quorate_sdk.heartbeat import DRAIN_S_MAX, InstanceKeeper
from quorate_sdk.wire import DEFAULT_NAMESPACE, InstanceRef, InstanceSpec, InstanceStatus
from quorate_sdk.worker_group import Alone, join_group

PROBE_TIMEOUT_S = 0.5


class Registration:
    """One registered instance. Heartbeats run on a thread of their own, see `quorate_sdk.heartbeat`.

    It works while the control plane is away: registering goes on in the background until it succeeds. Processes of one
    machine that register the same instance, as the workers of one server do, share it: one of them acts, and the last
    one to leave deregisters (`quorate_sdk.worker_group`).
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        token: str | None,
        service: str,
        instance_id: str,
        spec: InstanceSpec,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        when_listening: bool = False,
        shared: bool = True,
    ) -> None:
        """`when_listening`: register only once something listens on the instance's address. `shared`: with other
        processes that register the same. Raises SettingsError for a name that the registry would refuse."""
        try:
            InstanceRef(namespace=namespace, service=service, id=instance_id)
        except ValidationError as error:
            raise SettingsError(f"this instance cannot be registered: {describe(error)}") from error
        self.service = service
        self.instance_id = instance_id
        self._keeper = InstanceKeeper(
            BlockingControlPlane(endpoints, token, author=f"{service}/{instance_id}"),
            namespace, service, instance_id, spec,
            is_listening=_probe(spec.host, spec.port) if when_listening else None,
            join=(lambda: join_group(endpoints, namespace, service, instance_id)) if shared else Alone,
        )  # fmt: skip

    @property
    def registered(self) -> bool:
        """Whether the registry is known to have it."""
        return self._keeper.registered.is_set()

    @property
    def is_owned(self) -> bool:
        """Whether this process started it; false in a forked child, which neither renews nor ends it."""
        return self._keeper.is_owned

    @property
    def revision(self) -> int:
        """The store revision of the last registration; 0 before the first."""
        return self._keeper.revision

    @property
    def last_error(self) -> str | None:
        """Why the registry could not be reached, or what it refused; None when all is well."""
        return self._keeper.last_error

    def start(self) -> None:
        self._keeper.start()

    async def wait_registered(self, timeout_s: float) -> bool:
        """False when it is not registered in time; it goes on trying."""
        return await asyncio.to_thread(self._keeper.registered.wait, timeout_s)

    def change(
        self,
        *,
        status: InstanceStatus | None = None,
        weight: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Register with another status, weight or metadata, at once and again whenever it must be registered anew."""
        given = {"status": status, "weight": weight, "metadata": None if metadata is None else dict(metadata)}
        changes = {name: value for name, value in given.items() if value is not None}
        self._keeper.update(validated_spec({**self._keeper.spec.model_dump(), **changes}))

    def renew_now(self) -> None:
        """Send a heartbeat now."""
        self._keeper.renew_now()

    async def drain(self, timeout_s: float = DRAIN_S_MAX) -> None:
        """Mark it DRAINING, give subscribers a moment, deregister. When the control plane cannot be reached within
        `timeout_s` seconds, the registration ends by its time to live."""
        await asyncio.to_thread(self.leave, timeout_s)

    def leave(self, timeout_s: float = DRAIN_S_MAX, *, handing_over: bool = False) -> None:
        """`drain`, for callers without an event loop. `handing_over`: leave the registration as it is, for a process
        that comes next and registers the same; without one it ends by its time to live."""
        self._keeper.drain(timeout_s, handing_over=handing_over)


def validated_spec(fields: Mapping[str, Any]) -> InstanceSpec:
    """Raises SettingsError naming the field that the registry would refuse."""
    try:
        return InstanceSpec.model_validate(dict(fields))
    except ValidationError as error:
        raise SettingsError(f"this instance cannot be registered: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())


def default_instance_id(service: str, port: int) -> str:
    """Unique on a network of machines with names of their own, and the same after a restart on the same port."""
    host = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname()) or "host"
    return f"{service}-{host}-{port or os.getpid()}"[:128].rstrip(".-_")


def _probe(host: str, port: int) -> Callable[[], bool]:
    def is_listening() -> bool:
        try:
            socket.create_connection((host, port), PROBE_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    return is_listening
