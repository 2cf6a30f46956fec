"""What all messages of the v3 JSON API have in common, as etcd's gateway reads and writes them. Pure.

Bytes are standard base64, 64-bit integers are strings on the way out and strings or numbers on the way in, fields
that are zero are left out. A field may come by its own name or in camel case (`range_end`, `rangeEnd`), null stands
for zero, an empty body for an empty message, and what is unknown is ignored. What is good JSON of the right types is
read fast; everything else as Go would read it, or refuse it (`go_json`). Checked against a real etcd 3.4.
"""

import json
import re
from enum import IntEnum
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from quorate_core.errors import InvalidRequest

from quorate_store.v3 import go_json

ETCD_VERSION = "3.4.0"
"""The version of the API that is spoken here, which is what clients take this field for."""

T = TypeVar("T")
V = TypeVar("V")
E = TypeVar("E", bound=IntEnum)
Integer = int | str | None
"""An integer, or an enumeration's member, as it may come in."""
Flag = bool | None
Bytes = bytes | None

_PLAIN_INTEGER = re.compile(r"-?[1-9][0-9]{0,17}|0")
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class Header(msgspec.Struct, frozen=True):
    """`cluster_id` and `member_id` are 64 bits, in decimal."""

    cluster_id: str
    member_id: str
    revision: str | UnsetType = UNSET
    raft_term: str | UnsetType = UNSET


_empty_decoder = msgspec.json.Decoder(dict[str, Any])


def decode(decoder: msgspec.json.Decoder[T], body: bytes, kind: type[T]) -> T:
    """The message in `body`, which is of `kind`. Raises InvalidRequest."""
    if not body or body.isspace():
        return kind()
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return go_json.read(body, kind)


def either(camel: V, own: V) -> V:
    """A field that has come by both of its names has the value of the one in camel case."""
    return own if camel is None else camel


def decode_empty(body: bytes) -> None:
    """A message without fields. Raises InvalidRequest for what is no JSON object."""
    decode(_empty_decoder, body, dict[str, Any])


def enum(name: str, kind: type[E], given: Integer) -> E:
    """A member by name or number; nothing given is 0. `name` is etcd's, with its package. Raises InvalidRequest."""
    if given is None:
        return kind(0)
    if isinstance(given, str):
        if given not in kind.__members__:
            raise InvalidRequest(f"unknown value {json.dumps(given)} for enum {name}")
        return kind[given]
    if given not in kind._value2member_map_:
        # etcd takes such a number, and does something that nobody wants; 3.4 even ends by some of them.
        raise InvalidRequest(f"{given} stands for nothing in {name}; it is one of {', '.join(kind.__members__)}")
    return kind(given)


def int64(given: Integer) -> int:
    """Nothing given is 0. Raises InvalidRequest."""
    if given is None:
        return 0
    if isinstance(given, str):
        return int(given) if _PLAIN_INTEGER.fullmatch(given) else go_json.parse_int64(given)
    if not _INT64_MIN <= given <= _INT64_MAX:
        raise InvalidRequest(f"json: cannot unmarshal number {given} into Go value of type int64")
    return given


def integer(number: int) -> str | UnsetType:
    return str(number) if number else UNSET
