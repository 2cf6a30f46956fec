"""What keeps one instance registered: decisions in `Upkeep`, which is pure, and a thread that carries them out.

The states of an instance, and what leads from one to the next:

    waiting      not registered: not listening yet, never registered, forgotten by the registry, or changed since.
                 Register -> kept; a failure -> waiting, after a backoff.
    kept         registered. A heartbeat every third of its time to live -> kept; the registry does not know it ->
                 waiting, for a moment by chance, since it may have forgotten many; the caller changed it -> waiting.
    standing by  another process of its group (`quorate_sdk.worker_group`) acts for the same instance. That one is
                 gone -> kept, or waiting if something else than this was registered. It is silent for too long: one
                 heartbeat in its place.
    draining     told to leave, and the last one of its group. Mark it DRAINING, give subscribers a moment, deregister
                 -> gone. Each step is tried only until the drain's deadline: what is left then ends by its time to
                 live. Others of the group go on: gone at once.
    gone         the thread has ended.

The thread is its own, so that neither a blocked event loop nor a slow request handler costs the registration. What
holds up the whole interpreter holds it up too: a C function that keeps the interpreter's lock, or SIGSTOP. Then another
process of the group renews; a process alone has lapsed after its time to live, and registers again when it goes on.

After a fork only the process that started the thread has it: a child neither renews nor ends its parent's
registration.
"""

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from pydantic import ValidationError
from quorate_core.errors import InvalidRequest, NotFound, QuorateError

from quorate_sdk.control_plane import ATTEMPT_TIMEOUT_S, REQUEST_TIMEOUT_S, BlockingControlPlane
from quorate_sdk.failover import BACKOFF_FIRST_S
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.wire import Heartbeat, HeartbeatResult, Instance, InstanceRef, InstanceSpec, InstanceStatus
from quorate_sdk.worker_group import BOOT_PROBE_S, BOOT_S_MAX, Alone, Farewell, Group, Stamp, stand_by_s

HEARTBEATS_PER_TTL = 3
HEARTBEAT_JITTER = 0.1
"""Instances that beat together drift apart by so much of the interval."""
FIRST_HEARTBEAT_SHARE_MIN = 0.1
"""The first heartbeat after a registration comes within this share and the whole of the interval, by chance: those
who registered together do not beat together."""
REGISTER_AGAIN_SPREAD_S = 1.0
"""Those whom the registry has forgotten at once register again within so long, by chance."""
DRAIN_NOTICE_S = 0.5
"""Between DRAINING and deregistration: subscribers hear of a change within milliseconds."""
DRAIN_S_MAX = 5.0
LISTEN_PROBE_S = 0.1
REMINDER_FAILURES = 30
"""While the registry cannot be reached, every so many failures are worth a line in the log."""

log = ForkSafeLogger(__name__)


class Upkeep:
    """When to do what next, for one instance. Time to live and chance are arguments."""

    def __init__(self, ttl_s: float) -> None:
        self._interval_s = ttl_s / HEARTBEATS_PER_TTL
        self._failures = 0

    def registered(self, spread: float) -> float:
        """Seconds until the first heartbeat. `spread`, here and below: 0 to 1, at random."""
        self._failures = 0
        return self._interval_s * (FIRST_HEARTBEAT_SHARE_MIN + (1.0 - FIRST_HEARTBEAT_SHARE_MIN) * spread)

    def renewed(self, spread: float) -> float:
        """Seconds until the next heartbeat."""
        self._failures = 0
        return self._interval_s * (1.0 - HEARTBEAT_JITTER * spread)

    def forgotten(self, spread: float) -> float:
        """The registry does not know it any more: seconds until it registers again."""
        return min(REGISTER_AGAIN_SPREAD_S, self._interval_s) * spread

    def failed(self, spread: float) -> float:
        """No answer, or a refusal: seconds until the next try. They double up to the interval of heartbeats, and are
        cut by up to a half, so that those who lost the registry together come back over that whole interval."""
        self._failures += 1
        whole_s: float = min(BACKOFF_FIRST_S * 2 ** min(self._failures - 1, 16), self._interval_s)
        return whole_s * (0.5 + 0.5 * spread)

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
        join: Callable[[], Group] = Alone,
        chance: random.Random | None = None,
    ) -> None:
        """`is_listening`: when given, the instance is registered only once this says yes. `join`: makes this process
        a member of the group that shares the registration; called by the thread, since it touches files."""
        self._control_plane = control_plane
        self._reference = InstanceRef(namespace=namespace, service=service, id=instance_id)
        self._path = f"/v1/registry/{namespace}/services/{service}/instances/{instance_id}"
        self._spec = spec
        self._is_listening = is_listening
        self._chance = chance or random.Random()
        self._upkeep = Upkeep(spec.ttl_s)
        self._join = join
        self._group: Group = Alone()
        self._digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:32]
        """Of the spec that it was made with: members of a group that have the same one stand for one another."""
        self._was_keeper = False
        self._changed = threading.Condition()
        self._hurry = False
        self._is_changed = False
        self._offered = False
        # Sticky, set before the first PUT: from then on the registry may have it, whatever became of the answers.
        self._draining_until_s: float | None = None
        self._is_handing_over = False
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

    @property
    def is_owned(self) -> bool:
        """Whether this process started it, and is no child of that one."""
        return os.getpid() == self._owner_pid

    def start(self) -> None:
        self._thread.start()

    def update(self, spec: InstanceSpec) -> None:
        """Register with another status, weight or metadata, at once. Raises InvalidRequest in a forked child."""
        self._require_owner()
        with self._changed:
            self._spec = spec
            self._upkeep = Upkeep(spec.ttl_s)
            self._is_changed = True
            self.registered.clear()
            self._wake()

    def renew_now(self) -> None:
        """Send a heartbeat now, such as after the machine was suspended. Raises InvalidRequest in a forked child."""
        self._require_owner()
        with self._changed:
            self._wake()

    def drain(self, timeout_s: float = DRAIN_S_MAX, *, handing_over: bool = False) -> None:
        """Leave, and wait until gone or `timeout_s` seconds have passed. Does nothing in a forked child.

        `handing_over`: stop renewing and leave the registration as it is, for the process that comes next."""
        if not self.is_owned or not self._thread.ident:
            return
        with self._changed:
            if self._draining_until_s is None:
                # NB: abandoned before the thread can see that it is to leave, which is when it takes that back.
                self._control_plane.abandon()
                self._is_handing_over = handing_over
                self._draining_until_s = time.monotonic() + timeout_s
            self._wake()
        # Its deadline moves while it waits for another process of its group.
        while self._thread.is_alive() and (left_s := self._draining_until_s + 1.0 - time.monotonic()) > 0:
            self._thread.join(left_s)

    def _require_owner(self) -> None:
        if not self.is_owned:
            raise InvalidRequest("this registration belongs to the process that made it, and this is a child of that")

    def _wake(self) -> None:
        self._hurry = True
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._group = self._join()
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
            self._group.close()
            self._control_plane.close()

    def _keep_once(self) -> float:
        """One step; returns the seconds until the next one."""
        try:
            if not self._group.is_keeper():
                return self._stand_by()
            if not self._was_keeper:
                self._take_over()
            self._stamp()
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

    def _take_over(self) -> None:
        """Now the one that acts. What the former one has registered is kept, with what others have changed in it
        since, when this process would have registered the same: it is served all the time. After a restart it is not,
        and is registered when it is."""
        self._was_keeper = True
        former = self._group.last_stamp()
        if former is None or not former.revision:
            return
        self._offered = True
        is_lasting = 0.0 <= time.monotonic() - former.at_s <= self._spec.ttl_s
        is_served = self._is_listening is None or self._is_listening()
        if is_lasting and is_served and former.spec == self._digest and not self._is_changed:
            self.revision = former.revision
            self.registered.set()
            log.info("registration_taken_over", **self._names(), revision=former.revision)
        else:
            self.registered.clear()

    def _stand_by(self) -> float:
        """Another process acts. Returns the seconds until the next look."""
        self._was_keeper = False
        if self._is_changed:
            self._register()
        elif (acting := self._group.last_stamp()) is not None:
            self._follow(acting)
            if acting.is_overdue(time.monotonic(), self._spec.ttl_s):
                self._stand_in()
        return stand_by_s(self._spec.ttl_s)

    def _follow(self, acting: Stamp) -> None:
        if acting.revision:
            self._offered = True
            self.revision = acting.revision
            self.registered.set()
        else:
            self.registered.clear()

    def _stand_in(self) -> None:
        """Do once what is due, since the one that acts does not; it is stamped first, so that no other does too."""
        self._stamp()
        if self.registered.is_set():
            self._renew()
        if not self.registered.is_set() and (self._is_listening is None or self._is_listening()):
            self._register()

    def _stamp(self) -> None:
        self._group.stamp(Stamp(time.monotonic(), self._digest, self.revision if self.registered.is_set() else 0))

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
            self._is_changed = False
            self.registered.set()
        self._stamp()
        log.info("registered", **self._names(), address=instance.authority, revision=instance.revision)
        return self._upkeep.registered(self._chance.random())

    def _renew(self) -> float:
        heartbeat = Heartbeat(instances=[self._reference]).model_dump(mode="json")
        answer = self._request("POST", "/v1/registry/heartbeat", heartbeat)
        if HeartbeatResult.model_validate_json(answer.content).unknown:
            log.warning("registration_forgotten", **self._names())
            self.registered.clear()
            self._stamp()
            return self._upkeep.forgotten(self._chance.random())
        if self.last_error is not None:
            self.last_error = None
            log.info("registration_renewed_again", **self._names())
        return self._upkeep.renewed(self._chance.random())

    def _request(self, method: str, path: str, body: Any, timeout_s: float = REQUEST_TIMEOUT_S) -> httpx.Response:
        return self._control_plane.request(
            method, path, json=body, idempotent=True, timeout_s=timeout_s,
            attempt_timeout_s=self._upkeep.attempt_timeout_s,
        )  # fmt: skip

    def _leave(self) -> None:
        self._control_plane.go_on()
        if self._is_handing_over:
            self._hand_over()
            return
        if self._settle() is Farewell.OTHERS_GO_ON:
            log.info("registration_left_to_others", **self._names())
            return
        former = self._group.last_stamp()
        if not self._offered and not (former is not None and former.revision):
            return
        deadline_s = self._draining_until_s or 0.0
        if self._is_done_in_time("PATCH", deadline_s, {"status": InstanceStatus.DRAINING.value}):
            time.sleep(max(0.0, min(DRAIN_NOTICE_S, deadline_s - time.monotonic())))
        if self._is_done_in_time("DELETE", deadline_s):
            log.info("deregistered", **self._names())
        self._group.stamp(Stamp(time.monotonic(), self._digest, 0))

    def _hand_over(self) -> None:
        """Leave the next process the whole time to live to begin in."""
        if self._offered and self._group.is_keeper():
            try:
                self._renew()
            except (QuorateError, ValidationError) as error:
                log.warning("drain_step_failed", **self._names(), step="renewal", error=str(error))
        log.info("registration_left_to_the_next", **self._names())

    def _settle(self) -> Farewell:
        """Leave the group; keeps the registration for as long as it is not known who goes on, and moves the drain's
        deadline by that time."""
        began_s = next_step_s = time.monotonic()
        deadline_s = self._draining_until_s or began_s
        while (farewell := self._ask_to_leave()) is Farewell.UNDECIDED:
            now_s = time.monotonic()
            if now_s - began_s >= BOOT_S_MAX:
                return Farewell.LAST
            if self._offered and now_s >= next_step_s:
                next_step_s = now_s + self._keep_once()
            time.sleep(BOOT_PROBE_S)
            self._draining_until_s = deadline_s + time.monotonic() - began_s
        return farewell

    def _ask_to_leave(self) -> Farewell:
        try:
            return self._group.leave()
        except OSError as error:
            # Who cannot know deregisters: others whom that wrongs register again with their next heartbeat.
            log.warning("registration_group_lost", **self._names(), error=str(error))
            return Farewell.LAST

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
