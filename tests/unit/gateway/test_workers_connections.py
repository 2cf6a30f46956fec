"""Connections are counted over all workers, whichever of them opens, closes, stops or dies."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import InvariantViolation
from quorate_gateway.proxy.limits import ConnectionLimits
from quorate_gateway.settings import WORKERS_MAX
from quorate_gateway.workers.shared_connections import SharedConnectionCounts, forget_worker
from quorate_gateway.workers.shared_memory import SharedMemory
from quorate_gateway.workers.shared_table import TABLE_BYTES, SharedTables

WORKERS = 3
LIMITS = ConnectionLimits(client_connections_max=6, connections_per_client_max=3)
CLIENTS = st.sampled_from([b"", b"192.0.2.1", b"192.0.2.2"])


@pytest.fixture(scope="module")
def memory() -> Iterator[SharedMemory]:
    created = SharedMemory.create(TABLE_BYTES)
    yield created
    created.close()


def started(memory: SharedMemory, number: int) -> SharedConnectionCounts:
    """A worker's counts, as it begins."""
    counts = SharedConnectionCounts(LIMITS, SharedTables(memory), number, WORKERS, lambda: 1.0)
    counts.publish()
    return counts


def end(memory: SharedMemory, number: int) -> None:
    """What the first process does when a worker has gone."""
    memory.set_connections(number, 0, accepts=False)
    forget_worker(SharedTables(memory), number, 1.0)


STEPS = st.lists(st.tuples(st.sampled_from(["open", "open", "close", "die"]), st.integers(1, WORKERS), CLIENTS))


@settings(max_examples=60)
@given(STEPS)
def test_a_connection_is_refused_exactly_when_it_is_one_too_many_of_all(
    memory: SharedMemory, steps: list[tuple[str, int, bytes]]
) -> None:
    counts = {number: started(memory, number) for number in range(1, WORKERS + 1)}
    held: Counter[tuple[int, bytes]] = Counter()
    for what, number, client in steps:
        if what == "open":
            refusal = counts[number].opened(client)
            held[number, client] += 1
            of_client = sum(count for (_, of), count in held.items() if of == client)
            assert memory.connections_of_all() == held.total()
            if held.total() > LIMITS.client_connections_max:
                assert refusal is not None
                assert refusal.rule == "too-many-connections"
            elif client and of_client > LIMITS.connections_per_client_max:
                assert refusal is not None
                assert refusal.rule == "too-many-connections-of-client"
            else:
                assert refusal is None
        elif what == "close" and held[number, client]:
            counts[number].closed(client)
            held[number, client] -= 1
        elif what == "die":
            end(memory, number)
            counts[number] = started(memory, number)
            for key in [key for key in held if key[0] == number]:
                del held[key]
    for number in counts:
        end(memory, number)
    assert memory.connections_of_all() == 0


def test_a_worker_that_does_not_accept_counts_and_is_not_waited_for(memory: SharedMemory) -> None:
    one, other = started(memory, 1), started(memory, 2)
    one.opened(b"a")
    other.opened(b"a")
    other.opened(b"b")
    assert memory.fewest_and_most_connections() == (1, 2)
    one.leave()
    assert memory.fewest_and_most_connections() == (2, 2)
    assert memory.connections_of_all() == 3
    one.closed(b"a")
    assert memory.connections_of_all() == 2
    memory.set_away(2)  # it is stopped
    assert memory.fewest_and_most_connections() == (0, 0)
    assert (memory.connections(2), memory.connections_of_all()) == (2, 2)
    memory.set_away(2)
    assert memory.connections(2) == 2
    other.publish()  # it is back
    assert memory.fewest_and_most_connections() == (2, 2)
    for number in (1, 2):
        end(memory, number)


def test_there_are_no_other_workers_and_no_fewer_connections_than_none(memory: SharedMemory) -> None:
    for number, count in ((0, 1), (WORKERS_MAX + 1, 1), (1, -1)):
        with pytest.raises(InvariantViolation):
            memory.set_connections(number, count)
