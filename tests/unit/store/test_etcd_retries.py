"""When a stream is begun again, and what is told of it."""

from quorate_store.etcd.retries import BACKOFF_S_MAX, BACKOFF_S_MIN, Retries


def test_the_pause_doubles_up_to_a_limit_and_an_end_is_told_of_ever_more_seldom() -> None:
    retries = Retries()
    ends = [retries.ended(has_worked=False) for _ in range(100_000)]
    pauses_s = [pause_s for pause_s, _ in ends]
    assert pauses_s[:3] == [2 * BACKOFF_S_MIN, 4 * BACKOFF_S_MIN, 8 * BACKOFF_S_MIN]
    assert set(pauses_s[10:]) == {BACKOFF_S_MAX}
    assert [number for number, (_, is_told) in enumerate(ends, 1) if is_told] == [2**power for power in range(17)]


def test_one_that_has_worked_begins_the_count_anew() -> None:
    retries = Retries()
    for _ in range(10):
        retries.ended(has_worked=False)
    assert retries.ended(has_worked=True) == (2 * BACKOFF_S_MIN, True)
    assert retries.ended(has_worked=False) == (4 * BACKOFF_S_MIN, True)
    assert retries.failures == 2
