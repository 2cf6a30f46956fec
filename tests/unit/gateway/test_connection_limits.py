"""Connections are counted as a whole and for each client, and nobody is remembered who holds none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.errors import InvariantViolation
from quorate_gateway.proxy.limits import ConnectionCounts, ConnectionLimits

CLIENTS = st.sampled_from([b"", b"192.0.2.1", b"192.0.2.2", b"2001:db8::/64"])


def rule(counts: ConnectionCounts, client: bytes) -> str | None:
    refusal = counts.opened(client)
    return None if refusal is None else refusal.rule


def test_one_client_is_refused_while_others_are_not() -> None:
    counts = ConnectionCounts(ConnectionLimits(client_connections_max=5, connections_per_client_max=2))
    assert [rule(counts, b"a") for _ in range(3)] == [None, None, "too-many-connections-of-client"]
    assert rule(counts, b"b") is None
    for _ in range(2):  # the refused one still counts, until it is closed
        counts.closed(b"a")
    assert rule(counts, b"a") is None


def test_all_together_are_refused_above_the_limit_of_the_whole() -> None:
    counts = ConnectionCounts(ConnectionLimits(client_connections_max=2, connections_per_client_max=2))
    assert [rule(counts, client) for client in (b"a", b"b", b"c")] == [None, None, "too-many-connections"]


def test_a_trusted_proxy_is_counted_in_the_whole_alone() -> None:
    counts = ConnectionCounts(ConnectionLimits(client_connections_max=3, connections_per_client_max=1))
    assert [rule(counts, b"") for _ in range(4)] == [None, None, None, "too-many-connections"]
    assert len(counts) == 0


@given(st.lists(st.tuples(st.booleans(), CLIENTS)))
def test_the_counts_are_those_of_the_connections_that_are_open(steps: list[tuple[bool, bytes]]) -> None:
    counts = ConnectionCounts(ConnectionLimits())
    opened: list[bytes] = []
    for opens, client in steps:
        if opens:
            counts.opened(client)
            opened.append(client)
        elif client in opened:
            counts.closed(client)
            opened.remove(client)
        assert counts.total == len(opened)
        assert [counts.of(one) for one in (b"192.0.2.1", b"192.0.2.2")] == [
            opened.count(one) for one in (b"192.0.2.1", b"192.0.2.2")
        ]
        assert len(counts) == len(set(opened) - {b""})


def test_closing_what_was_not_opened_is_a_defect() -> None:
    counts = ConnectionCounts(ConnectionLimits())
    counts.opened(b"a")
    with pytest.raises(InvariantViolation):
        counts.closed(b"b")
