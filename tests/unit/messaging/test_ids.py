"""Identifiers that sort by time."""

import uuid

from hypothesis import given
from hypothesis import strategies as st
from quorate_messaging.ids import RANDOM_BITS, time_ordered_id

bits = st.integers(0, 2**RANDOM_BITS - 1)
moments = st.floats(0, 10**11, allow_nan=False)


@given(wall_s=moments, random_bits=bits)
def test_an_id_is_a_version_7_uuid_of_its_millisecond(wall_s: float, random_bits: int) -> None:
    made = uuid.UUID(time_ordered_id(wall_s, random_bits))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == int(wall_s * 1000)


@given(wall_s=moments, random_bits=bits, others=bits)
def test_later_ids_sort_after_earlier_ones_as_text(wall_s: float, random_bits: int, others: int) -> None:
    assert time_ordered_id(wall_s, random_bits) < time_ordered_id(wall_s + 0.002, others)


@given(first=bits, second=bits)
def test_every_random_bit_is_in_the_id(first: int, second: int) -> None:
    assert (time_ordered_id(1.0, first) == time_ordered_id(1.0, second)) == (first == second)
