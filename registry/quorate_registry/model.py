"""Instances as the store keeps them and as the API shows them. Pure.

A key is `quorate/registry/{namespace}/{service}/{id}`; its value is a `Record` in JSON; it lives by the lease that it
is attached to. The revision of an instance is its key's.
"""

from typing import NamedTuple

import msgspec
from quorate_sdk.wire import InstancePatch, InstanceSpec, InstanceStatus
from quorate_store.model import KeyValue, prefix_end

KEY_PREFIX = b"quorate/registry/"
KEY_PREFIX_END = prefix_end(KEY_PREFIX)


class InstanceName(NamedTuple):
    namespace: str
    service: str
    id: str

    def __str__(self) -> str:
        return f"instance {self.id!r} of service {self.service!r} in namespace {self.namespace!r}"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An instance's value in the store. Fields that a later version adds are ignored."""

    host: str
    port: int
    scheme: str
    weight: int
    zone: str
    version: str
    metadata: dict[str, str]
    status: InstanceStatus
    ttl_s: int


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


class Entry(msgspec.Struct, frozen=True):
    """What a node knows of one instance. `encoded` is its view in JSON, made once."""

    name: InstanceName
    view: InstanceView
    lease: int
    encoded: bytes


_encoder = msgspec.json.Encoder()
_record_decoder = msgspec.json.Decoder(Record)


def instance_key(name: InstanceName) -> bytes:
    return KEY_PREFIX + "/".join(name).encode()


def instance_name(key: bytes) -> InstanceName:
    """Raises ValueError for a key that is none of an instance."""
    parts = key.removeprefix(KEY_PREFIX).decode().split("/")
    if not key.startswith(KEY_PREFIX) or len(parts) != 3:
        raise ValueError(f"{key!r} names no instance")
    return InstanceName(*parts)


def record_of(spec: InstanceSpec) -> Record:
    return Record(**spec.model_dump())


def encode_record(record: Record) -> bytes:
    return _encoder.encode(record)


def decode_record(value: bytes) -> Record:
    """Raises ValueError (msgspec's errors are) for what is no record."""
    return _record_decoder.decode(value)


def patched(record: Record, patch: InstancePatch) -> Record:
    """`record` with what the patch gives; metadata is replaced as a whole."""
    given = {name: value for name, value in patch.model_dump().items() if value is not None}
    return msgspec.structs.replace(record, **given)


def view_of(name: InstanceName, record: Record, revision: int) -> InstanceView:
    return InstanceView(
        namespace=name.namespace, service=name.service, id=name.id, revision=revision,
        **{field: getattr(record, field) for field in Record.__struct_fields__},
    )  # fmt: skip


def entry_of(kv: KeyValue) -> Entry:
    """Raises ValueError for a key or value that is none of an instance."""
    name = instance_name(kv.key)
    view = view_of(name, decode_record(kv.value), kv.mod_revision)
    return Entry(name, view, kv.lease, _encoder.encode(view))


def encode_view(view: InstanceView) -> bytes:
    return _encoder.encode(view)
