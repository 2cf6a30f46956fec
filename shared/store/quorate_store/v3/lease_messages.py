"""The messages of `/v3/lease`, as etcd's gateway reads and writes them. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from quorate_store.model import LeaseStatus
from quorate_store.v3.codec import Flag, Header, Integer, decode, int64, integer

_NO_TTL = "-1"
"""Of a lease that does not exist."""


class _WireGrant(msgspec.Struct):
    ttl: Integer = msgspec.field(default=None, name="TTL")
    id: Integer = msgspec.field(default=None, name="ID")


class _WireLease(msgspec.Struct):
    """Of revoke and keepalive."""

    id: Integer = msgspec.field(default=None, name="ID")


class _WireTimeToLive(msgspec.Struct):
    id: Integer = msgspec.field(default=None, name="ID")
    keys: Flag = None


_grant_decoder = msgspec.json.Decoder(_WireGrant)
_lease_decoder = msgspec.json.Decoder(_WireLease)
_time_to_live_decoder = msgspec.json.Decoder(_WireTimeToLive)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class GrantRequest:
    """`lease` 0: the store chooses the id."""

    ttl_s: int
    lease: int


@dataclass(frozen=True, slots=True)
class TimeToLiveRequest:
    lease: int
    keys: bool


def decode_grant(body: bytes) -> GrantRequest:
    """Raises InvalidRequest."""
    wire = decode(_grant_decoder, body, _WireGrant)
    return GrantRequest(int64(wire.ttl), int64(wire.id))


def decode_lease(body: bytes) -> int:
    """The lease that a revoke or a keepalive names. Raises InvalidRequest."""
    return int64(decode(_lease_decoder, body, _WireLease).id)


def decode_time_to_live(body: bytes) -> TimeToLiveRequest:
    """Raises InvalidRequest."""
    wire = decode(_time_to_live_decoder, body, _WireTimeToLive)
    return TimeToLiveRequest(int64(wire.id), bool(wire.keys))


class _WireLeaseAnswer(msgspec.Struct, frozen=True):
    """Of grant and keepalive."""

    header: Header
    id: str | UnsetType = msgspec.field(default=UNSET, name="ID")
    ttl: str | UnsetType = msgspec.field(default=UNSET, name="TTL")


class _WireKeepaliveLine(msgspec.Struct, frozen=True):
    result: _WireLeaseAnswer


class _WireRevokeAnswer(msgspec.Struct, frozen=True):
    header: Header


class _WireTimeToLiveAnswer(msgspec.Struct, frozen=True):
    header: Header
    id: str | UnsetType = msgspec.field(default=UNSET, name="ID")
    ttl: str | UnsetType = msgspec.field(default=UNSET, name="TTL")
    granted_ttl: str | UnsetType = msgspec.field(default=UNSET, name="grantedTTL")
    keys: tuple[bytes, ...] | UnsetType = UNSET


class _WireLeaseId(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="ID")


class _WireLeasesAnswer(msgspec.Struct, frozen=True):
    header: Header
    leases: list[_WireLeaseId] | UnsetType = UNSET


def encode_grant(header: Header, granted: LeaseStatus) -> bytes:
    return _encode(_WireLeaseAnswer(header, integer(granted.lease), integer(granted.granted_ttl_s)))


def encode_revoke(header: Header) -> bytes:
    return _encode(_WireRevokeAnswer(header))


def encode_keepalive(header: Header, lease: int, ttl_s: int) -> bytes:
    """A line of the stream; `ttl_s` 0: there is no such lease."""
    return _encode(_WireKeepaliveLine(_WireLeaseAnswer(header, integer(lease), integer(ttl_s)))) + b"\n"


def encode_time_to_live(header: Header, status: LeaseStatus) -> bytes:
    return _encode(
        _WireTimeToLiveAnswer(
            header,
            integer(status.lease),
            integer(math.floor(status.remaining_ttl_s)),
            integer(status.granted_ttl_s),
            status.keys or UNSET,
        )
    )


def encode_no_time_to_live(header: Header, lease: int) -> bytes:
    """For a lease that does not exist."""
    return _encode(_WireTimeToLiveAnswer(header, integer(lease), _NO_TTL))


def encode_leases(header: Header, leases: Sequence[int]) -> bytes:
    return _encode(_WireLeasesAnswer(header, [_WireLeaseId(str(lease)) for lease in leases] if leases else UNSET))
