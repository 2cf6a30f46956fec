"""JSON as Go reads it: what the fast decoder refuses is taken or refused as etcd's gateway does it.

What single texts come to is in the transcripts, from a real etcd; here is what must hold of all of them.
"""

import base64
import json
import re
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import InvalidRequest
from quorate_store.v3 import go_json
from quorate_store.v3.codec import Bytes, Flag, Integer, decode
from quorate_store.v3.kv_messages import decode_put, decode_range, decode_txn

SECONDS_MAX = 2.0
"""For what takes some 20 ms on an idle machine."""


class Message(msgspec.Struct):
    key: Bytes = None
    number: Integer = None
    flag: Flag = None
    name: str = ""
    inner: "Message | None" = None
    many: list[bytes] | None = None


DECODER = msgspec.json.Decoder(Message)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def as_python(value: Any) -> Any:
    """A value as it was read, with its numbers."""
    if isinstance(value, go_json.GoNumber):
        return json.loads(value)
    if isinstance(value, dict):
        return {name: as_python(one) for name, one in value.items()}
    return [as_python(one) for one in value] if isinstance(value, list) else value


def read_value(data: bytes) -> Any:
    return as_python(go_json._Reader(data, "unexpected EOF").first())


@given(VALUES, st.booleans(), st.sampled_from(["", " ", "\n\t", "garbage", "{"]))
def test_good_json_is_read_whatever_stands_behind_it(value: Any, is_ascii: bool, behind: str) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii) + " " + behind
    assert read_value(text.encode("utf-8", "surrogatepass")) == value


@given(VALUES, st.data())
def test_json_that_ends_too_early_is_refused_as_that(value: Any, data: st.DataObject) -> None:
    text = json.dumps({"k": value}).encode()
    cut = text[: data.draw(st.integers(1, len(text) - 1))]
    with pytest.raises(InvalidRequest, match=r"^unexpected EOF$"):
        read_value(cut)


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_whatever_comes_is_read_or_refused_and_never_worse(noise: bytes) -> None:
    for text in (noise, b'{"key":' + noise + b"}", b'{"key":"' + noise + b'"}', b'{"number":"' + noise + b'"}'):
        for refusable in (decode_range, decode_put, decode_txn, lambda body: decode(DECODER, body, Message)):
            with suppress(InvalidRequest):
                refusable(text)


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 80), st.sampled_from([b"\n", b"\r\n"]))))
def test_base64_is_read_with_line_breaks_anywhere(data: bytes, breaks: list[tuple[int, bytes]]) -> None:
    text = base64.b64encode(data)
    for at, line_break in breaks:
        text = text[:at] + line_break + text[at:]
    assert go_json._decode_base64(text) == data


@settings(max_examples=300)
@given(st.text("AZaz09+/=-_ \n", max_size=12))
def test_what_is_no_base64_is_refused_at_a_byte_of_it(text: str) -> None:
    compact = text.replace("\n", "")
    if re.fullmatch(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", compact):
        assert len(go_json._decode_base64(text.encode())) == len(compact) // 4 * 3 - compact.count("=")
        return
    with pytest.raises(InvalidRequest, match=r"^illegal base64 data at input byte \d+$") as refused:
        go_json._decode_base64(text.encode())
    assert int(refused.value.detail.rpartition(" ")[2]) <= len(text)


def test_fields_are_read_by_their_types() -> None:
    odd = b'{"key":"YQ==\\n","number":" 7 ","flag":true,"name":"n","inner":{"key":[1,255]},"many":["Yg=="]} behind'
    read = decode(DECODER, odd, Message)
    assert (read.key, read.number, read.flag, read.name, read.many) == (b"a", " 7 ", True, "n", [b"b"])
    assert read.inner is not None
    assert read.inner.key == b"\x01\xff"
    assert go_json.parse_int64(" 7 ") == 7


@pytest.mark.parametrize("body", [b"null", b"{} {", b'{"key":null} x', b'{"inner":null} x'])
def test_null_stands_for_nothing(body: bytes) -> None:
    assert decode(DECODER, body, Message) == Message()


def test_null_in_a_list_is_refused() -> None:
    """It ends a real etcd 3.4."""
    for body in (b'{"success":[null]}', b'{"compare":[null]}'):
        with pytest.raises(InvalidRequest, match="null in a list"):
            decode_txn(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_what_is_nested_too_deep_is_refused_as_go_does(opening: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"exceeded max depth"):
        read_value(opening * (go_json.DEPTH_MAX + 1))
    with pytest.raises(InvalidRequest, match=r"unexpected EOF"):
        read_value(opening * go_json.DEPTH_MAX)


@pytest.mark.parametrize(
    "body",
    [
        b'{"key":"' + b"A" * 4_000_000,
        b"[" + b"1," * 2_000_000,
        b'{"a":' * 400_000,
        b'{"key":"' + b"\\u0041" * 600_000 + b"\\",
        b'{"key":"' + b"A=" * 2_000_000 + b'"}',
        b'{"key":[' + b"1," * 1_000_000 + b"1]}",
    ],
    ids=["a long string", "many values", "deep", "escapes", "no base64", "a byte each"],
)
def test_nonsense_takes_no_longer_than_sense(body: bytes) -> None:
    began_s = time.perf_counter()
    with pytest.raises(InvalidRequest):
        decode_range(body)
    assert time.perf_counter() - began_s < SECONDS_MAX
