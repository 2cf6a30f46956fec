"""The rule by which a route tries again: what is safe to repeat, and how its budget goes on over snapshots."""

import pytest
from quorate_gateway.documents.protection import RouteRetry
from quorate_gateway.policies.retry import Failure, RetryRule, compile_retry


def rule(**values: object) -> RetryRule:
    return compile_retry(RouteRetry(**values))  # type: ignore[arg-type]


def test_what_was_not_sent_may_be_tried_again_whatever_it_is() -> None:
    two = rule(attempts=2)
    assert [two.allows(Failure.NOT_SENT, b"POST", before) for before in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("failure", [Failure.NO_ANSWER, Failure.BAD_STATUS])
@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        (b"GET", True), (b"HEAD", True), (b"OPTIONS", True), (b"TRACE", True), (b"PUT", True), (b"DELETE", True),
        (b"POST", False), (b"PATCH", False), (b"PROPFIND", False), (b"get", False),
    ],
)  # fmt: skip
def test_what_may_have_been_done_is_tried_again_only_when_that_changes_nothing(
    failure: Failure, method: bytes, allowed: bool
) -> None:
    assert rule(attempts=1).allows(failure, method, 0) is allowed
    assert rule(attempts=1, non_idempotent=True).allows(failure, method, 0)


def test_no_attempts_are_no_attempts() -> None:
    assert not rule(attempts=0, non_idempotent=True).allows(Failure.NOT_SENT, b"GET", 0)


def test_it_is_set_as_the_route_says() -> None:
    found = rule(attempts=3, per_try_timeout_ms=250, statuses=[502, 503], budget_percent=7.5)
    assert (found.per_try_timeout_s, found.statuses, found.budget.percent) == (0.25, {502, 503}, 7.5)
    assert rule().per_try_timeout_s is None


def test_its_budget_goes_on_while_it_is_the_same() -> None:
    former = rule(attempts=3)
    assert compile_retry(RouteRetry(attempts=3), former) is former
    assert compile_retry(RouteRetry(attempts=2), former).budget is not former.budget
