"""Which endpoint is asked first."""

from quorate_store.etcd.endpoints import SET_ASIDE_S_MAX, SET_ASIDE_S_MIN, EndpointOrder


def test_the_first_is_asked_as_long_as_it_answers() -> None:
    endpoints = EndpointOrder(3)
    assert list(endpoints.order(0.0)) == [0, 1, 2]
    endpoints.answered(0)
    assert list(endpoints.order(1.0)) == [0, 1, 2]


def test_one_that_fails_comes_last_and_the_next_is_kept_to() -> None:
    endpoints = EndpointOrder(3)
    endpoints.failed(0, 10.0)
    assert list(endpoints.order(10.0)) == [1, 2, 0]
    assert list(endpoints.order(10.0 + SET_ASIDE_S_MIN)) == [1, 2, 0], "it does not come back by itself"
    endpoints.failed(1, 11.0)
    assert list(endpoints.order(11.0)) == [2, 0, 1]


def first(endpoints: EndpointOrder, now_s: float) -> int:
    return next(iter(endpoints.order(now_s)))


def test_one_that_fails_again_and_again_is_set_aside_for_twice_as_long_up_to_a_limit() -> None:
    endpoints = EndpointOrder(2)
    now_s, set_aside_s = 0.0, SET_ASIDE_S_MIN
    for _ in range(50):
        endpoints.failed(0, now_s)
        endpoints.failed(1, now_s)
        endpoints.answered(1)
        assert first(endpoints, now_s + set_aside_s - 0.01) == 1
        assert first(endpoints, now_s + set_aside_s + 0.01) == 0
        now_s += set_aside_s + 0.01
        set_aside_s = min(2 * set_aside_s, SET_ASIDE_S_MAX)


def test_an_answer_makes_up_for_all_failures() -> None:
    endpoints = EndpointOrder(2)
    for now_s in (0.0, 1.0, 2.0):
        endpoints.failed(0, now_s)
    endpoints.answered(0)
    endpoints.failed(1, 3.0)
    endpoints.failed(0, 3.0)
    endpoints.answered(1)
    endpoints.failed(1, 3.0)
    assert first(endpoints, 3.01 + SET_ASIDE_S_MIN) == 0


def test_many_that_fail_at_once_count_as_one() -> None:
    endpoints = EndpointOrder(2)
    for _ in range(100):
        endpoints.failed(0, 5.0)
    endpoints.failed(1, 5.0)
    assert first(endpoints, 5.0 + SET_ASIDE_S_MIN) == 0


def test_when_all_have_failed_the_one_whose_time_is_over_first_is_asked_first() -> None:
    endpoints = EndpointOrder(3)
    for place, now_s in ((2, 1.00), (0, 1.05), (1, 1.10)):
        endpoints.failed(place, now_s)
    assert list(endpoints.order(1.10)) == [2, 0, 1]
