"""The error family: one table, and a round trip through problem+json."""

import inspect

import pytest
from quorate_core import errors
from quorate_core.errors import Problem, QuorateError, Retry, error_from_problem, kind_of

FAMILY = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, QuorateError)]


@pytest.mark.parametrize("error_type", FAMILY, ids=lambda t: t.__name__)
def test_every_error_has_its_own_row_in_the_table(error_type: type[QuorateError]) -> None:
    slugs = [kind_of(other).slug for other in FAMILY if other is not error_type]
    assert kind_of(error_type).slug not in slugs


@pytest.mark.parametrize("error_type", FAMILY, ids=lambda t: t.__name__)
def test_what_a_client_raises_is_what_the_server_raised(error_type: type[QuorateError]) -> None:
    body = Problem.of(error_type("the cause", compact_revision=7)).body()
    raised = error_from_problem(body)
    assert type(raised) is error_type
    assert raised.detail == "the cause"
    assert raised.extensions == {"compact_revision": 7}


def test_a_subclass_without_a_row_answers_as_its_parent() -> None:
    class LeaseNotFound(errors.NotFound):
        pass

    assert Problem.of(LeaseNotFound("no lease 7")).status == 404


def test_extensions_cannot_overwrite_the_problem_s_own_members() -> None:
    assert Problem.of(errors.NotFound("x", status=200)).body()["status"] == 404


def test_an_unknown_problem_is_still_an_error_with_a_detail() -> None:
    raised = error_from_problem({"type": "about:blank", "title": "Teapot"})
    assert (type(raised), raised.detail) == (QuorateError, "Teapot")


def test_writes_that_may_have_happened_are_never_called_safe_to_retry() -> None:
    assert kind_of(errors.OutcomeUnknown).retry is Retry.UNKNOWN
    assert kind_of(errors.NotProposed).retry is Retry.SAFE
