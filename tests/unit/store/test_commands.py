"""Commands as they stand in logs: what this release writes it reads, and what the one before wrote."""

import msgspec
import pytest
from quorate_core.errors import InvariantViolation
from quorate_store.commands import COMMAND_VERSION, Command, Compact, LeaseGrant, decode_command, encode_command
from quorate_store.model import (
    Arrangement,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    PutOp,
    RangeOp,
    SortOrder,
    SortTarget,
    TxnOp,
)

_pack = msgspec.msgpack.Encoder().encode


@pytest.mark.parametrize(
    "command",
    [
        PutOp(b"k", b"v", 7, True, True, True),
        TxnOp(
            (Compare(b"k", CompareTarget.MOD, CompareResult.LESS, 9),),
            (RangeOp(b"a", b"b", arrangement=Arrangement(SortOrder.DESCEND, SortTarget.VALUE, 1, 2, 3, 4)),),
            (TxnOp((), (DeleteOp(b"k"),)),),
        ),
        Compact(5),
        LeaseGrant(7, 60),
    ],
)
def test_what_is_written_is_read(command: Command) -> None:
    data = encode_command(command)
    assert data[0] == COMMAND_VERSION == 3
    assert decode_command(data) == command


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        (["put", b"k", b"v", 7, True], PutOp(b"k", b"v", 7, True)),
        (["delete", b"k", b"m", True], DeleteOp(b"k", b"m", True)),
        (
            [
                "txn",
                [[b"k", "version", "=", 1, b""]],
                [["range", b"a", b"b", 1, 2, True, False]],
                [["put", b"k", b"v"]],
            ],
            TxnOp(
                (Compare(b"k", CompareTarget.VERSION, CompareResult.EQUAL, 1),),
                (RangeOp(b"a", b"b", 1, 2, True),),
                (PutOp(b"k", b"v"),),
            ),
        ),
        (["compact", 5], Compact(5)),
    ],
)
def test_what_the_first_version_wrote_is_read(fields: list[object], command: Command) -> None:
    assert decode_command(b"\x01" + _pack(fields)) == command


@pytest.mark.parametrize("data", [b"", b"\x00" + _pack(["compact", 5]), b"\x04" + _pack(["compact", 5]), b"\x03\xc1"])
def test_what_this_release_cannot_know_stops_it(data: bytes) -> None:
    with pytest.raises(InvariantViolation):
        decode_command(data)
