"""Instances as the store keeps them and as the API shows them. Pure.

An instance has up to three keys, each under a prefix of its own and then `{namespace}/{service}/{id}`:

    quorate/registry/         its `Record`; no lease: it stays until it is deregistered or reaped
    quorate/registry-alive/   empty, on the instance's lease; only of ephemeral ones, while their heartbeats come
    quorate/registry-health/  what active checks have found, a `Health`; only of persistent ones that are checked

A service may have three, `{namespace}/{service}`:

    quorate/registry-services/  its `ServiceRecord`: settings, and who made them
    quorate/registry-notes/     a `Note`: why an instance of it was removed last, written in the very transaction
    quorate/registry-guard/     a `Guard`: its owner has seen it protected, and not yet that nothing of it is lapsed

What anybody is shown follows from these keys at a revision, and from nothing else (ADR 12).
"""

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from pydantic import TypeAdapter
from quorate_sdk.wire import HealthCheck, InstancePatch, InstanceSpec, InstanceStatus, ServiceSettings
from quorate_store.model import KeyValue, prefix_end

REGISTRY_PREFIX = b"quorate/registry"
REGISTRY_PREFIX_END = prefix_end(REGISTRY_PREFIX)
"""Everything of the registry."""
KEY_PREFIX = REGISTRY_PREFIX + b"/"
KEY_PREFIX_END = prefix_end(KEY_PREFIX)
"""The records alone."""
CHECKS_CACHED = 1_024
OUTPUT_CHARS_MAX = 256


class KeyKind(StrEnum):
    """Of which prefix a key is."""

    RECORD = "registry"
    ALIVE = "registry-alive"
    HEALTH = "registry-health"
    SETTINGS = "registry-services"
    NOTE = "registry-notes"
    GUARD = "registry-guard"

    @property
    def is_of_service(self) -> bool:
        return self in (KeyKind.SETTINGS, KeyKind.NOTE, KeyKind.GUARD)


_PREFIXES = {kind: b"quorate/" + kind.value.encode() + b"/" for kind in KeyKind}
_KINDS = {kind.value: kind for kind in KeyKind}


class ServiceName(NamedTuple):
    namespace: str
    service: str

    def __str__(self) -> str:
        return f"service {self.service!r} in namespace {self.namespace!r}"


class InstanceName(NamedTuple):
    namespace: str
    service: str
    id: str

    @property
    def of(self) -> ServiceName:
        return ServiceName(self.namespace, self.service)

    def __str__(self) -> str:
        return f"instance {self.id!r} of service {self.service!r} in namespace {self.namespace!r}"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An instance's value in the store. Fields that a later version adds are ignored. `check` is its own, as
    `quorate_sdk.wire.HealthCheck` in plain values."""

    host: str
    port: int
    scheme: str
    weight: int
    zone: str
    version: str
    metadata: dict[str, str]
    status: InstanceStatus
    ttl_s: int
    tags: tuple[str, ...] = ()
    ephemeral: bool = True
    check: dict[str, Any] | None = None
    changed_by: str = ""
    changed_at_ms: int = 0

    @property
    def would_take_traffic(self) -> bool:
        """Were it alive and healthy."""
        return self.status is InstanceStatus.UP and self.weight > 0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What checks of an instance have decided. Written only when `passing` changes, or whether it is in doubt.

    In doubt is what fails without a word of the other side (`checks.doubt`): `doubt_since_ms` says since when, 0 when
    it is not. While the network is thought to be the reason it is *held*: written as passing, and shown as stale. A
    version before these fields ignores them, and shows it as passing.
    """

    passing: bool
    output: str
    """What was seen when it was decided; at most OUTPUT_CHARS_MAX characters."""
    checked_by: str
    changed_at_ms: int
    doubt_since_ms: int = 0
    held_since_ms: int = 0
    """When it was held first in this doubt; 0: never."""

    @property
    def is_held(self) -> bool:
        return self.passing and self.doubt_since_ms > 0


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a service in the store, as `quorate_sdk.wire.ServiceSettings` in plain values."""

    protection_threshold: float
    hold_s: int
    default_check: dict[str, Any] | None
    changed_by: str = ""
    changed_at_ms: int = 0


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The last removal of a service's instances: which, by whom, why."""

    id: str
    by: str
    at_ms: int
    reason: str


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """Who has seen a service protected, and when. That the key is there decides, whatever it holds."""

    by: str
    at_ms: int


class HealthView(msgspec.Struct, frozen=True, kw_only=True):
    passing: bool
    output: str
    checked_by: str
    since: str


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """An instance in answers: the fields of `quorate_sdk.wire.Instance`, encoded fast."""

    namespace: str
    service: str
    id: str
    host: str
    port: int
    scheme: str
    weight: int
    zone: str
    version: str
    metadata: dict[str, str]
    status: InstanceStatus
    ttl_s: int
    revision: int
    tags: tuple[str, ...]
    ephemeral: bool
    stale: bool
    health: HealthView | None


class Entry(msgspec.Struct, frozen=True):
    """What a node knows of one instance: its keys' content. `lease` is 0 when it is persistent or has lapsed."""

    name: InstanceName
    record: Record
    record_revision: int
    lease: int
    health: Health | None
    health_revision: int
    view: InstanceView
    encoded: bytes
    """The view in JSON, made once."""

    @property
    def is_alive(self) -> bool:
        return self.lease != 0

    @property
    def has_lapsed(self) -> bool:
        return self.record.ephemeral and not self.lease


_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(Record)
_health_decoder = msgspec.json.Decoder(Health)
_service_decoder = msgspec.json.Decoder(ServiceRecord)
_note_decoder = msgspec.json.Decoder(Note)
_check_adapter: TypeAdapter[HealthCheck] = TypeAdapter(HealthCheck)
DEFAULT_SETTINGS = ServiceSettings()


def key_of(kind: KeyKind, name: InstanceName | ServiceName) -> bytes:
    return _PREFIXES[kind] + "/".join(name).encode()


def instance_key(name: InstanceName) -> bytes:
    return key_of(KeyKind.RECORD, name)


def parse_key(key: bytes) -> tuple[KeyKind, InstanceName | ServiceName]:
    """Raises ValueError for a key that is none of the registry."""
    parts = key.decode().split("/")
    kind = _KINDS.get(parts[1]) if len(parts) > 1 and parts[0] == "quorate" else None
    if kind is None or len(parts) != (4 if kind.is_of_service else 5):
        raise ValueError(f"{key!r} is no key of the registry")
    return kind, ServiceName(*parts[2:]) if kind.is_of_service else InstanceName(*parts[2:])


def instance_name(key: bytes) -> InstanceName:
    """Raises ValueError for a key that is none of an instance's record."""
    kind, name = parse_key(key)
    if kind is not KeyKind.RECORD or not isinstance(name, InstanceName):
        raise ValueError(f"{key!r} names no instance")
    return name


def record_of(spec: InstanceSpec, by: str, at_ms: int) -> Record:
    return msgspec.convert({**spec.model_dump(mode="json"), "changed_by": by, "changed_at_ms": at_ms}, Record)


def encode_record(record: Record) -> bytes:
    return _encoder.encode(record)


def decode_record(value: bytes) -> Record:
    """Raises ValueError (msgspec's errors are) for what is no record."""
    return _record_decoder.decode(value)


def patched(record: Record, patch: InstancePatch, by: str, at_ms: int) -> Record:
    """`record` with what the patch gives; tags and metadata are replaced as a whole."""
    given = {name: value for name, value in patch.model_dump().items() if value is not None}
    if "tags" in given:
        given["tags"] = tuple(given["tags"])
    return msgspec.structs.replace(record, **given, changed_by=by, changed_at_ms=at_ms)


def encode_health(health: Health) -> bytes:
    return _encoder.encode(health)


def decode_health(value: bytes) -> Health:
    """Raises ValueError."""
    return _health_decoder.decode(value)


def encode_settings(settings: ServiceSettings, by: str, at_ms: int) -> bytes:
    return _encoder.encode(ServiceRecord(**settings.model_dump(mode="json"), changed_by=by, changed_at_ms=at_ms))


def decode_settings(value: bytes) -> ServiceSettings:
    """Raises ValueError (pydantic's and msgspec's errors are)."""
    found = msgspec.to_builtins(_service_decoder.decode(value))
    return ServiceSettings.model_validate({name: found[name] for name in ServiceSettings.model_fields}, extra="ignore")


def encode_note(note: Note) -> bytes:
    return _encoder.encode(note)


def decode_note(value: bytes) -> Note:
    """Raises ValueError."""
    return _note_decoder.decode(value)


def encode_guard(guard: Guard) -> bytes:
    return _encoder.encode(guard)


def is_checked(record: Record, settings: ServiceSettings) -> bool:
    """Whether checks say how it is; also by a check that this version cannot read: then nodes of a later one ask, and
    all show the same."""
    return not record.ephemeral and (record.check is not None or settings.default_check is not None)


def check_of(record: Record, settings: ServiceSettings) -> HealthCheck | None:
    """How this instance is checked: only a persistent one is; its own check goes before its service's default. None
    also for one that this version cannot read."""
    if record.ephemeral:
        return None
    if record.check is None:
        return settings.default_check
    return _parsed_check(_encoder.encode(record.check))


@lru_cache(CHECKS_CACHED)
def _parsed_check(encoded: bytes) -> HealthCheck | None:
    try:
        return _check_adapter.validate_json(encoded, extra="ignore")
    except ValueError:
        return None


def rfc3339(at_ms: int) -> str:
    """UTC, to the millisecond."""
    at = datetime.fromtimestamp(at_ms / 1_000, UTC)
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def view_of(
    name: InstanceName, record: Record, revision: int, *, is_checked: bool = False, health: Health | None = None,
    is_stale: bool = False,
) -> InstanceView:  # fmt: skip
    status = record.status
    if is_checked and status is InstanceStatus.UP:
        status = (
            InstanceStatus.STARTING if health is None
            else InstanceStatus.UP if health.passing else InstanceStatus.DOWN
        )  # fmt: skip
    is_held = is_checked and health is not None and health.is_held
    return InstanceView(
        namespace=name.namespace, service=name.service, id=name.id, host=record.host, port=record.port,
        scheme=record.scheme, weight=record.weight, zone=record.zone, version=record.version, metadata=record.metadata,
        status=status, ttl_s=record.ttl_s, revision=revision, tags=record.tags, ephemeral=record.ephemeral,
        stale=is_stale or is_held, health=_health_view(health) if is_checked else None,
    )  # fmt: skip


def _health_view(health: Health | None) -> HealthView | None:
    if health is None:
        return None
    return HealthView(
        passing=health.passing, output=health.output, checked_by=health.checked_by, since=rfc3339(health.changed_at_ms)
    )


def entry_of(
    name: InstanceName, record: Record, record_revision: int, lease: int, health: tuple[Health, int] | None,
    settings: ServiceSettings,
) -> Entry:  # fmt: skip
    """`health` with the revision of its key."""
    found, health_revision = health or (None, 0)
    view = view_of(
        name, record, max(record_revision, health_revision), is_checked=is_checked(record, settings),
        health=found, is_stale=record.ephemeral and not lease,
    )  # fmt: skip
    return Entry(name, record, record_revision, lease, found, health_revision, view, _encoder.encode(view))


def encode_view(view: InstanceView) -> bytes:
    return _encoder.encode(view)


def key_value_of(found: tuple[KeyValue, ...]) -> KeyValue | None:
    return found[0] if found else None
