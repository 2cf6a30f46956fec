"""Where a call goes, and when it may be tried again."""

import pytest
from quorate_core.errors import SettingsError
from quorate_sdk.failover import BACKOFF_S_MAX, Endpoints, Failure, RetryPlan, backoff_s


@pytest.mark.parametrize("urls", [[], ["127.0.0.1:8501"], ["ftp://host:1"], ["http://"]])
def test_what_is_no_endpoint_is_refused_with_the_way_out(urls: list[str]) -> None:
    with pytest.raises(SettingsError, match="http://host:port"):
        Endpoints(urls)


def test_calls_stay_with_the_last_good_endpoint() -> None:
    endpoints = Endpoints(["http://a:1/", "http://b:2", "http://c:3"])
    assert endpoints.current == "http://a:1"
    endpoints.leave("http://a:1")
    endpoints.leave("http://a:1")  # another call has failed there too: one step only
    assert endpoints.current == "http://b:2"
    endpoints.leave("http://b:2")
    endpoints.leave("http://c:3")
    assert endpoints.current == "http://a:1"


def test_a_refused_connection_goes_on_at_once_and_waits_after_each_round() -> None:
    plan = RetryPlan(3, idempotent=False, deadline_s=100.0)
    delays = [plan.delay_s(Failure.NOT_SENT, 0.0, 1.0) for _ in range(7)]
    assert delays == [0.0, 0.0, 0.05, 0.0, 0.0, 0.1, 0.0]


def test_a_server_that_asks_for_patience_gets_it_every_time() -> None:
    plan = RetryPlan(3, idempotent=False, deadline_s=100.0)
    assert [plan.delay_s(Failure.NOT_DONE, 0.0, 1.0) for _ in range(3)] == [0.05, 0.1, 0.2]


def test_an_unknown_outcome_is_repeated_only_when_the_call_is_idempotent() -> None:
    assert RetryPlan(2, idempotent=False, deadline_s=100.0).delay_s(Failure.UNKNOWN, 0.0, 0.5) is None
    assert RetryPlan(2, idempotent=True, deadline_s=100.0).delay_s(Failure.UNKNOWN, 0.0, 0.5) == 0.0


def test_a_final_answer_is_never_repeated() -> None:
    assert RetryPlan(2, idempotent=True, deadline_s=100.0).delay_s(Failure.FINAL, 0.0, 0.5) is None


def test_no_try_begins_after_the_deadline() -> None:
    plan = RetryPlan(1, idempotent=True, deadline_s=10.0)
    assert plan.delay_s(Failure.NOT_SENT, 9.9, 1.0) is not None
    assert plan.delay_s(Failure.NOT_SENT, 9.95, 1.0) is None


def test_backoff_doubles_up_to_its_limit_and_is_spread() -> None:
    assert [backoff_s(failures, 1.0) for failures in (1, 2, 3)] == [0.05, 0.1, 0.2]
    assert backoff_s(1_000_000, 1.0) == BACKOFF_S_MAX
    assert backoff_s(1, 0.0) == 0.025
