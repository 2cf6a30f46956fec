"""The messages of `/v3/cluster` and `/v3/maintenance`, as etcd's gateway reads and writes them. Pure.

Ids of members are 64 bits without a sign. Here they are made from the members' names, so that all nodes have the same.
"""

from enum import IntEnum

import msgspec
from msgspec import UNSET, UnsetType
from quorate_core.errors import InvalidRequest

from quorate_store.model import StateHash
from quorate_store.v3 import go_json
from quorate_store.v3.codec import Flag, Header, Integer, decode, enum, int64

_ACTION = "etcdserverpb.AlarmRequest_AlarmAction"
_ALARM = "etcdserverpb.AlarmType"
_UINT64_MAX = 2**64 - 1
_DECIMAL_DIGITS_MAX = 20


class AlarmAction(IntEnum):
    GET = 0
    ACTIVATE = 1
    DEACTIVATE = 2


class AlarmType(IntEnum):
    NONE = 0
    NOSPACE = 1
    CORRUPT = 2


class AddMemberRequest(msgspec.Struct):
    """`name` is ours: etcd's members name themselves when they start."""

    peer_urls: list[str] = msgspec.field(default_factory=list, name="peerURLs")
    is_learner: Flag = msgspec.field(default=None, name="isLearner")
    name: str = ""


class MemberRequest(msgspec.Struct):
    """Of promote, remove, and update."""

    id: Integer = msgspec.field(default=None, name="ID")
    peer_urls: list[str] = msgspec.field(default_factory=list, name="peerURLs")

    @property
    def member_id(self) -> str:
        """Raises InvalidRequest."""
        return uint64(self.id)


class TransferRequest(msgspec.Struct):
    target_id: Integer = msgspec.field(default=None, name="targetID")

    @property
    def member_id(self) -> str:
        """Raises InvalidRequest."""
        return uint64(self.target_id)


class AlarmRequest(msgspec.Struct, frozen=True):
    action: AlarmAction
    alarm: AlarmType


class _WireAlarmRequest(msgspec.Struct):
    action: Integer = None
    alarm: Integer = None


class _WireHashRequest(msgspec.Struct):
    revision: Integer = None


_add_decoder = msgspec.json.Decoder(AddMemberRequest)
_member_decoder = msgspec.json.Decoder(MemberRequest)
_transfer_decoder = msgspec.json.Decoder(TransferRequest)
_alarm_decoder = msgspec.json.Decoder(_WireAlarmRequest)
_hash_decoder = msgspec.json.Decoder(_WireHashRequest)
_encode = msgspec.json.Encoder().encode


def decode_add_member(body: bytes) -> AddMemberRequest:
    return decode(_add_decoder, body, AddMemberRequest)


def decode_member(body: bytes) -> MemberRequest:
    return decode(_member_decoder, body, MemberRequest)


def decode_transfer(body: bytes) -> TransferRequest:
    return decode(_transfer_decoder, body, TransferRequest)


def decode_alarm(body: bytes) -> AlarmRequest:
    wire = decode(_alarm_decoder, body, _WireAlarmRequest)
    return AlarmRequest(enum(_ACTION, AlarmAction, wire.action), enum(_ALARM, AlarmType, wire.alarm))


def decode_hash(body: bytes) -> int:
    """The revision; 0 for the newest."""
    return max(0, int64(decode(_hash_decoder, body, _WireHashRequest).revision))


def uint64(given: Integer) -> str:
    """In decimal, as ids are written; nothing given is 0. Raises InvalidRequest, in Go's words."""
    if given is None:
        return "0"
    if isinstance(given, str):
        is_plain = given.isascii() and given.isdecimal() and len(given) <= _DECIMAL_DIGITS_MAX
        given = int(given) if is_plain else go_json.parse_int64(given)
    if not 0 <= given <= _UINT64_MAX:
        raise InvalidRequest(f"json: cannot unmarshal number {given} into Go value of type uint64")
    return str(given)


class WireMember(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="ID")
    name: str
    peer_urls: tuple[str, ...] = msgspec.field(name="peerURLs")
    client_urls: tuple[str, ...] | UnsetType = msgspec.field(name="clientURLs")
    is_learner: bool | UnsetType = msgspec.field(name="isLearner")


class _WireMembers(msgspec.Struct, frozen=True):
    header: Header
    member: WireMember | UnsetType
    members: tuple[WireMember, ...]


def encode_members(header: Header, members: tuple[WireMember, ...], added: WireMember | None = None) -> bytes:
    return _encode(_WireMembers(header, UNSET if added is None else added, members))


class StatusAnswer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    header: Header
    version: str
    db_size: str
    leader: str = ""
    """Absent when no leader is known."""
    raft_index: str = ""
    raft_term: str = ""
    raft_applied_index: str = ""
    errors: tuple[str, ...] = ()
    db_size_in_use: str = ""
    is_learner: bool = False


def encode_status(answer: StatusAnswer) -> bytes:
    return _encode(answer)


class _WireHash(msgspec.Struct, frozen=True):
    """`hash` is 32 bits, and so a number. The revisions are ours: etcd 3.4 hashes its whole file, and names none."""

    header: Header
    hash: int
    compact_revision: str | UnsetType
    hash_revision: str


def encode_hash(header: Header, found: StateHash) -> bytes:
    compact_revision = str(found.compact_revision) if found.compact_revision else UNSET
    return _encode(_WireHash(header, found.hash, compact_revision, str(found.revision)))


class _WireAlarm(msgspec.Struct, frozen=True):
    member_id: str = msgspec.field(name="memberID")
    alarm: str


def encode_alarms(member_id: str, alarms: tuple[AlarmType, ...]) -> bytes:
    """etcd's answer has no header here."""
    return _encode({"alarms": [_WireAlarm(member_id, alarm.name) for alarm in alarms]} if alarms else {})


class _WireBlob(msgspec.Struct, frozen=True):
    remaining_bytes: str | UnsetType
    blob: bytes


class _WireBlobLine(msgspec.Struct, frozen=True):
    result: _WireBlob


def encode_blob(blob: bytes, remaining_bytes: int) -> bytes:
    """A line of a snapshot."""
    return _encode(_WireBlobLine(_WireBlob(str(remaining_bytes) if remaining_bytes else UNSET, blob))) + b"\n"
