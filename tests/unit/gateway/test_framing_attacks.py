"""Requests that two implementations could read differently are refused, whole or cut anywhere, and named by a rule."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_gateway.proxy.bodies import request_body
from quorate_gateway.proxy.framing import read_request_head
from quorate_gateway.proxy.refusals import Refusal
from support.gateway_attacks import ATTACKS, CHUNKS, HEAD_ATTACKS, Attack


def refusal_of(pieces: list[bytes]) -> Refusal | None:
    """What a connection that gets these pieces refuses, as the data plane reads them."""
    data, scanned, body = b"", 0, None
    for piece in pieces:
        try:
            if body is not None:
                body.feed(piece)
                continue
            data += piece
            head = read_request_head(data, None, scanned)
            scanned = len(data)
            if head is not None:
                body = request_body(head.fields.length)
                body.feed(data[head.end :])
        except Refusal as refusal:
            return refusal
    return None


@pytest.mark.parametrize("attack", HEAD_ATTACKS, ids=lambda attack: attack.what)
def test_an_ambiguous_head_is_refused_by_its_rule(attack: Attack) -> None:
    with pytest.raises(Refusal) as refused:
        read_request_head(attack.request)
    assert (refused.value.status, refused.value.rule) == (attack.status, attack.rule)


@pytest.mark.parametrize("attack", CHUNKS, ids=lambda attack: attack.what)
def test_an_ambiguous_chunk_is_refused(attack: Attack) -> None:
    refusal = refusal_of([attack.request])
    assert refusal is not None
    assert (refusal.status, refusal.rule) == (attack.status, attack.rule)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.what)
def test_it_is_refused_byte_by_byte_too(attack: Attack) -> None:
    assert refusal_of([attack.request[at : at + 1] for at in range(len(attack.request))]) is not None


@given(st.sampled_from(ATTACKS), st.lists(st.integers(0, 400), max_size=4))
def test_it_is_refused_wherever_the_stream_is_cut(attack: Attack, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(attack.request)), len(attack.request)]
    pieces = [attack.request[start:end] for start, end in itertools.pairwise(places)]
    assert refusal_of(pieces) is not None


def test_a_detail_never_repeats_what_the_request_said() -> None:
    """A refusal of a script tag must not become one."""
    with pytest.raises(Refusal) as refused:
        read_request_head(b"GET /<script> HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "script" not in refused.value.detail
