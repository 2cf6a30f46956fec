"""Policies: what each compiles to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_gateway.policies.retry import Failure, compile_retry
from quorate_gateway.policies.rewrite import compile_rewrite


@pytest.mark.parametrize(
    ("matched", "replacement", "target", "rewritten"),
    [
        ("/orders", "/v2", b"/orders/7?a=/orders", b"/v2/7?a=/orders"),
        ("/orders", "/v2", b"/orders", b"/v2"),
        ("/orders", "/v2", b"/orders?a", b"/v2?a"),
        ("/orders", "/", b"/orders/7", b"/7"),
        ("/orders", "/", b"/orders", b"/"),
        ("/orders", "/", b"/orders?a", b"/?a"),
        ("/orders", "/", b"/orders/", b"/"),
        ("/", "/v2", b"/a", b"/v2/a"),
        ("/", "/v2", b"/", b"/v2/"),
    ],
)
def test_the_part_that_matched_is_replaced(matched: str, replacement: str, target: bytes, rewritten: bytes) -> None:
    rewrite = compile_rewrite(matched, replacement)
    assert rewrite is not None
    assert rewrite(target) == rewritten


def test_nothing_to_replace_costs_nothing() -> None:
    assert compile_rewrite("/a", None) is None
    assert compile_rewrite("/a", "/a") is None


@given(st.sampled_from(["/", "/v2", "/a/b"]), st.text("abc/?=", max_size=10).map(str.encode))
def test_a_rewritten_target_is_always_a_path(replacement: str, rest: bytes) -> None:
    rewrite = compile_rewrite("/orders", replacement)
    assert rewrite is not None
    assert rewrite(b"/orders/" + rest).startswith(b"/")


def test_what_was_not_sent_may_be_tried_again_whatever_it_is() -> None:
    may_retry = compile_retry(2)
    assert may_retry(Failure.NOT_SENT, b"POST", 0)
    assert may_retry(Failure.NOT_SENT, b"POST", 1)
    assert not may_retry(Failure.NOT_SENT, b"POST", 2)


@pytest.mark.parametrize(
    ("method", "allowed"), [(b"GET", True), (b"PUT", True), (b"DELETE", True), (b"POST", False), (b"PATCH", False)]
)
def test_what_may_have_been_done_is_tried_again_only_when_that_changes_nothing(method: bytes, allowed: bool) -> None:
    assert compile_retry(1)(Failure.NO_ANSWER, method, 0) is allowed


def test_no_attempts_are_no_attempts() -> None:
    assert not compile_retry(0)(Failure.NOT_SENT, b"GET", 0)
