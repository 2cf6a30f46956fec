"""Frames: whole payloads out of any split of the bytes, and never more memory than one frame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.frames import FrameDecoder, FrameTooLarge, encode_frame


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_split_of_the_stream_gives_the_same_payloads(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(encode_frame(payload) for payload in payloads)
    decoder, received, offset, turn = FrameDecoder(), [], 0, 0
    while offset < len(stream):
        size = cuts[turn % len(cuts)]
        received += list(decoder.feed(stream[offset : offset + size]))
        offset, turn = offset + size, turn + 1
    assert received == payloads
    assert decoder.pending_bytes == 0


def test_a_frame_over_the_limit_is_refused_by_its_header_alone() -> None:
    decoder = FrameDecoder(frame_bytes_max=10)
    with pytest.raises(FrameTooLarge, match="11 bytes"):
        list(decoder.feed((11).to_bytes(4, "big")))


def test_a_sender_cannot_make_a_frame_over_the_limit() -> None:
    with pytest.raises(FrameTooLarge):
        encode_frame(b"x" * 11, frame_bytes_max=10)


def test_payloads_before_an_oversized_frame_are_delivered_once() -> None:
    decoder = FrameDecoder(frame_bytes_max=10)
    received: list[bytes] = []
    with pytest.raises(FrameTooLarge):
        received.extend(decoder.feed(encode_frame(b"good") + (99).to_bytes(4, "big")))
    assert received == [b"good"]
    assert decoder.pending_bytes == 4
