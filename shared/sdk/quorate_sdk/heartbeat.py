"""What keeps one instance registered: decisions in `Upkeep`, which is pure, and a thread that carries them out.

The states of an instance, and what leads from one to the next:

    waiting      not registered: not listening yet, never registered, forgotten by the registry, or changed since.
                 Register -> kept; a failure -> waiting, after a backoff.
    kept         registered. A heartbeat every third of its time to live -> kept; the registry does not know it, or
                 the caller changed it -> waiting.
    draining     told to leave. Mark it DRAINING, give subscribers a moment, deregister -> gone. Each step is tried
                 only until the drain's deadline: what is left then ends by its time to live.
    gone         the thread has ended.

The thread is its own, so that neither a blocked event loop nor a slow request handler costs the registration. After
a fork only the process that started the thread has it: a child neither renews nor ends its parent's registration.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import structlog
from pydantic import ValidationError
from quorate_core.errors import NotFound, QuorateError

from quorate_sdk.control_plane import ATTEMPT_TIMEOUT_S, REQUEST_TIMEOUT_S, BlockingControlPlane
from quorate_sdk.failover import backoff_s
from quorate_sdk.wire import Heartbeat, HeartbeatResult, Instance, InstanceRef, InstanceSpec, InstanceStatus

HEARTBEATS_PER_TTL = 3
HEARTBEAT_JITTER = 0.1
"""Instances that started together drift apart by so much of the interval."""
DRAIN_NOTICE_S = 0.5
"""Between DRAINING and deregistration: subscribers hear of a change within milliseconds."""
DRAIN_S_MAX = 5.0
LISTEN_PROBE_S = 0.1
REMINDER_FAILURES = 30
"""While the registry cannot be reached, every so many failures are worth a line in the log."""

log = structlog.get_logger(__name__)


class Upkeep:
    """When to do what next, for one instance. Time to live and chance are arguments."""

    def __init__(self, ttl_s: float) -> None:
        self._interval_s = ttl_s / HEARTBEATS_PER_TTL
        self._failures = 0

    def succeeded(self, spread: float) -> float:
        """Registered or renewed: seconds until the next heartbeat. `spread`: 0 to 1, at random."""
        self._failures = 0
        return self._interval_s * (1.0 - HEARTBEAT_JITTER * spread)

    def failed(self, spread: float) -> float:
        """No answer, or a refusal: seconds until the next try, never later than the next heartbeat would be."""
        self._failures += 1
        return min(backoff_s(self._failures, spread), self._interval_s)

    @property
    def attempt_timeout_s(self) -> float:
        """Of one try: when a node hangs, another one is asked well before the next heartbeat is due."""
        return min(ATTEMPT_TIMEOUT_S, self._interval_s / 2)

    @property
    def failures(self) -> int:
        return self._failures


class InstanceKeeper:
    """The thread. `start` it; then `update`, `renew_now` and `drain` may be called from any thread."""

    def __init__(
        self,
        control_plane: BlockingControlPlane,
        namespace: str,
        service: str,
        instance_id: str,
        spec: InstanceSpec,
        *,
        is_listening: Callable[[], bool] | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """`is_listening`: when given, the instance is registered only once this says yes."""
        self._control_plane = control_plane
        self._reference = InstanceRef(namespace=namespace, service=service, id=instance_id)
        self._path = f"/v1/registry/{namespace}/services/{service}/instances/{instance_id}"
        self._spec = spec
        self._is_listening = is_listening
        self._chance = chance or random.Random()
        self._upkeep = Upkeep(spec.ttl_s)
        self._changed = threading.Condition()
        self._hurry = False
        self._offered = False
        # Sticky, set before the first PUT: from then on the registry may have it, whatever became of the answers.
        self._draining_until_s: float | None = None
        self._owner_pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"keep-{service}-{instance_id}", daemon=True)
        self.registered = threading.Event()
        """Set while the registry is known to have it."""
        self.revision = 0
        """The store revision of the last registration."""
        self.last_error: str | None = None

    @property
    def spec(self) -> InstanceSpec:
        return self._spec

    def start(self) -> None:
        self._thread.start()

    def update(self, spec: InstanceSpec) -> None:
        """Register with another status, weight or metadata, at once."""
        with self._changed:
            self._spec = spec
            self._upkeep = Upkeep(spec.ttl_s)
            self.registered.clear()
            self._wake()

    def renew_now(self) -> None:
        """Send a heartbeat now, such as after the machine was suspended."""
        with self._changed:
            self._wake()

    def drain(self, timeout_s: float = DRAIN_S_MAX) -> None:
        """Leave, and wait until gone or `timeout_s` seconds have passed. Does nothing in a forked child."""
        if os.getpid() != self._owner_pid or not self._thread.ident:
            return
        with self._changed:
            if self._draining_until_s is None:
                # NB: abandoned before the thread can see that it is to leave, which is when it takes that back.
                self._control_plane.abandon()
                self._draining_until_s = time.monotonic() + timeout_s
            self._wake()
        self._thread.join(timeout_s + 1.0)

    def _wake(self) -> None:
        self._hurry = True
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._draining_until_s is None:
                delay_s = self._keep_once()
                with self._changed:
                    if not self._hurry:
                        self._changed.wait(delay_s)
                    self._hurry = False
            self._leave()
        except Exception:
            log.exception("drain_failed", **self._names())  # the registration ends by its time to live
        finally:
            self.registered.clear()
            self._control_plane.close()

    def _keep_once(self) -> float:
        """One step; returns the seconds until the next one."""
        try:
            if self.registered.is_set():
                return self._renew()
            if self._is_listening is not None and not self._is_listening():
                return LISTEN_PROBE_S
            return self._register()
        except (QuorateError, ValidationError) as error:
            self.last_error = error.detail if isinstance(error, QuorateError) else str(error)
            if self._upkeep.failures % REMINDER_FAILURES == 0:
                log.warning("registration_failing", **self._names(), error=self.last_error)
        except Exception as error:
            # A defect must be seen, and must not cost the registration.
            self.last_error = f"{type(error).__name__}: {error}"
            if self._upkeep.failures % REMINDER_FAILURES == 0:
                log.exception("registration_step_failed", **self._names())
        return self._upkeep.failed(self._chance.random())

    def _register(self) -> float:
        spec = self._spec
        self._offered = True
        answer = self._request("PUT", self._path, spec.model_dump(mode="json"))
        instance = Instance.model_validate_json(answer.content)
        with self._changed:
            if spec is not self._spec:
                return 0.0  # changed meanwhile: once more
            self.revision = instance.revision
            self.last_error = None
            self.registered.set()
        log.info("registered", **self._names(), address=instance.authority, revision=instance.revision)
        return self._upkeep.succeeded(self._chance.random())

    def _renew(self) -> float:
        heartbeat = Heartbeat(instances=[self._reference]).model_dump(mode="json")
        answer = self._request("POST", "/v1/registry/heartbeat", heartbeat)
        if HeartbeatResult.model_validate_json(answer.content).unknown:
            log.warning("registration_forgotten", **self._names())
            self.registered.clear()
            return 0.0
        if self.last_error is not None:
            self.last_error = None
            log.info("registration_renewed_again", **self._names())
        return self._upkeep.succeeded(self._chance.random())

    def _request(self, method: str, path: str, body: Any, timeout_s: float = REQUEST_TIMEOUT_S) -> httpx.Response:
        return self._control_plane.request(
            method, path, json=body, idempotent=True, timeout_s=timeout_s,
            attempt_timeout_s=self._upkeep.attempt_timeout_s,
        )  # fmt: skip

    def _leave(self) -> None:
        if not self._offered:
            return
        self._control_plane.go_on()
        deadline_s = self._draining_until_s or 0.0
        if self._is_done_in_time("PATCH", deadline_s, {"status": InstanceStatus.DRAINING.value}):
            time.sleep(max(0.0, min(DRAIN_NOTICE_S, deadline_s - time.monotonic())))
        if self._is_done_in_time("DELETE", deadline_s):
            log.info("deregistered", **self._names())

    def _is_done_in_time(self, method: str, deadline_s: float, body: dict[str, str] | None = None) -> bool:
        try:
            self._request(method, self._path, body, timeout_s=deadline_s - time.monotonic())
        except NotFound:
            return False  # gone already
        except QuorateError as error:
            log.warning("drain_step_failed", **self._names(), step=method, error=error.detail)
            return False
        return True

    def _names(self) -> dict[str, str]:
        return {"service": self._reference.service, "id": self._reference.id}
