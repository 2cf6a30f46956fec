"""What the store writes into the replicated log: one command an entry, msgpack behind a version byte.

A command carries everything that its effect depends on: ids are chosen and times are measured by the proposer, so
that every member applies it to the same end.
"""

import msgspec
from quorate_core.errors import InvariantViolation, PayloadTooLarge

from quorate_store.model import REQUEST_BYTES_MAX, DeleteOp, PutOp, TxnOp

COMMAND_VERSION = 3
"""The first byte of a command. A member that meets a higher one stops: to skip it would be to diverge.

Version 2 has arrangements of ranges, and puts that keep a key's value or lease; what version 1 wrote reads the same.
From version 3 on, what a transaction reads is bounded (`read_budget`); what was written before is applied as it was."""
COMMAND_VERSIONS_READ = (1, 2, 3)
READS_BOUNDED_FROM_VERSION = 3


class Compact(msgspec.Struct, frozen=True, array_like=True, tag="compact"):
    revision: int


class LeaseGrant(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    lease: int
    ttl_s: int


class LeaseRevoke(msgspec.Struct, frozen=True, array_like=True, tag="revoke"):
    """Asked for by a client, so it holds whoever leads."""

    lease: int


class LeaseIncarnation(msgspec.Struct, frozen=True, array_like=True):
    """`generation` is the log index of the grant: an id that was revoked and granted again is another lease."""

    lease: int
    generation: int


class LeaseExpire(msgspec.Struct, frozen=True, array_like=True, tag="expire"):
    """The leader of `term` found that these have ended. Void when the entry carries another term: then its proposer
    was deposed, and knew nothing of the keepalives that its successor has answered."""

    term: int
    leases: tuple[LeaseIncarnation, ...]


class LeaseRemaining(msgspec.Struct, frozen=True, array_like=True):
    """`remaining_ms` 0 clears a checkpoint: the lease has its whole time to live before it again."""

    lease: int
    generation: int
    remaining_ms: int


class LeaseCheckpoint(msgspec.Struct, frozen=True, array_like=True, tag="checkpoint"):
    """What was left of these leases, measured by the leader of `term`; void in another term, as LeaseExpire is."""

    term: int
    remaining: tuple[LeaseRemaining, ...]


class SetQuota(msgspec.Struct, frozen=True, array_like=True, tag="quota"):
    """The quota is state, so that all members refuse the same puts whatever their settings say."""

    quota_bytes: int


Command = PutOp | DeleteOp | TxnOp | Compact | LeaseGrant | LeaseRevoke | LeaseExpire | LeaseCheckpoint | SetQuota

_VERSION = bytes([COMMAND_VERSION])
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


def encode_command(command: Command) -> bytes:
    """Raises PayloadTooLarge over REQUEST_BYTES_MAX bytes."""
    data = _VERSION + _encoder.encode(command)
    if len(data) > REQUEST_BYTES_MAX:
        raise PayloadTooLarge(f"the request takes {len(data)} bytes; the limit is {REQUEST_BYTES_MAX}")
    return data


def decode_command(data: bytes) -> Command:
    """Raises InvariantViolation for what this version cannot have written: applying on would be guessing."""
    if not data or data[0] not in COMMAND_VERSIONS_READ:
        raise InvariantViolation(
            f"the log holds a store command of version {data[0] if data else 'none'}; this member knows "
            f"{COMMAND_VERSION}: run a newer release here"
        )
    try:
        return _decoder.decode(memoryview(data)[1:])
    except msgspec.MsgspecError as error:
        raise InvariantViolation(f"a store command of {len(data)} bytes in the log cannot be read: {error}") from error
