"""Deadlines as they go from hop to hop: what is read, and what is sent on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience.deadline import TIMEOUT_MS_MAX, left_ms, read_timeout_ms


@pytest.mark.parametrize(
    ("value", "timeout_ms"),
    [
        (b"250", 250), (b"0", 0), (b"007", 7), (b"-5", 0), (b"999999999999", TIMEOUT_MS_MAX),
        (b"", None), (b"1.5", None), (b"+5", None), (b"5s", None), (b" 5", None), (b"1e3", None), (b"-", None),
        (b"1_000", None), (b"0x10", None), ("٣".encode(), None), (b"1" * 13, None),
    ],
)  # fmt: skip
def test_a_timeout_is_a_whole_number_of_milliseconds(value: bytes, timeout_ms: int | None) -> None:
    assert read_timeout_ms(value) == timeout_ms


@pytest.mark.parametrize(
    ("deadline_s", "now_s", "left"), [(10.0, 9.5, 500), (10.0, 9.9991, 0), (10.0, 10.0, 0), (10.0, 11.0, 0)]
)
def test_what_is_left_is_rounded_down_and_never_negative(deadline_s: float, now_s: float, left: int) -> None:
    assert left_ms(deadline_s, now_s) == left


@given(st.integers(0, TIMEOUT_MS_MAX), st.lists(st.floats(0, 100_000), max_size=6), st.floats(0, 1e6, allow_nan=False))
def test_no_hop_gives_more_time_than_it_was_given(timeout_ms: int, spent_ms: list[float], start_s: float) -> None:
    left, now_s = timeout_ms, start_s
    for spent in spent_ms:
        deadline_s = now_s + left / 1_000
        now_s += spent / 1_000
        sent_on = left_ms(deadline_s, now_s)
        assert 0 <= sent_on <= left
        read = read_timeout_ms(str(sent_on).encode())
        assert read == sent_on
        left = sent_on
