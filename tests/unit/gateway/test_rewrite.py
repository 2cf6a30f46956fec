"""Rewriting: what matched is replaced, the query stays, and no rewritten target is anything but a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_gateway.documents.changes import RouteRewrite
from quorate_gateway.documents.match import RouteMatch
from quorate_gateway.policies.rewrite import Rewrite, compile_rewrite


def by_prefix(matched: str, replacement: str) -> Rewrite:
    rewrite = compile_rewrite(RouteMatch(path_prefix=matched), RouteRewrite(path_prefix=replacement))
    assert rewrite is not None
    return rewrite


def by_template(template: str, form: str) -> Rewrite:
    rewrite = compile_rewrite(RouteMatch(path_template=template), RouteRewrite(path=form))
    assert rewrite is not None
    return rewrite


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
    assert by_prefix(matched, replacement)(target) == rewritten


def test_an_exact_path_is_replaced_whole() -> None:
    rewrite = compile_rewrite(RouteMatch(path="/today"), RouteRewrite(path_prefix="/v2/orders"))
    assert rewrite is not None
    assert rewrite(b"/today?full=1") == b"/v2/orders?full=1"


def test_nothing_to_replace_costs_nothing() -> None:
    match = RouteMatch(path_prefix="/a")
    assert compile_rewrite(match, None) is None
    assert compile_rewrite(match, RouteRewrite(path_prefix="/a")) is None
    assert compile_rewrite(match, RouteRewrite(host="other.example")) is None


@pytest.mark.parametrize(
    ("template", "form", "target", "rewritten"),
    [
        ("/orders/{id}", "/v2/{id}", b"/orders/7?full=1", b"/v2/7?full=1"),
        ("/orders/{id}", "/v2/all", b"/orders/7", b"/v2/all"),
        ("/{a}/x/{b}", "/{b}/{a}", b"/1/x/2?", b"/2/1?"),
        ("/{a}/x/{b}", "/{a}{a}-{b}", b"/1/x/2", b"/11-2"),
        ("/files/{path...}", "/store/{path}", b"/files/a/b//c?x=/d", b"/store/a/b//c?x=/d"),
        ("/{a}/{rest...}", "/{rest}/of/{a}", b"/1/2/3", b"/2/3/of/1"),
        ("/orders/{id}", "/50%25/{id}", b"/orders/%2Fb", b"/50%25/%2Fb"),
        ("/orders/{id}", "/v2/{id}", b"/orders/a?b?c", b"/v2/a?b?c"),
    ],
)
def test_the_names_of_a_template_stand_for_what_was_there(
    template: str, form: str, target: bytes, rewritten: bytes
) -> None:
    assert by_template(template, form)(target) == rewritten


@given(st.sampled_from(["/", "/v2", "/a/b"]), st.text("abc/?=", max_size=10).map(str.encode))
def test_a_target_that_is_rewritten_is_always_a_path_with_the_query_that_came(replacement: str, rest: bytes) -> None:
    target = b"/orders/" + rest
    rewritten = by_prefix("/orders", replacement)(target)
    assert rewritten.startswith(b"/")
    assert rewritten.partition(b"?")[1:] == target.partition(b"?")[1:]


@given(st.lists(st.text("ab%2F.~", min_size=1, max_size=4), min_size=2, max_size=4), st.text("ab?&=/", max_size=6))
def test_a_template_that_is_rewritten_to_itself_changes_nothing(segments: list[str], query: str) -> None:
    names = [f"v{number}" for number in range(len(segments))]
    template = "/" + "/".join(f"{{{name}}}" for name in names)
    target = ("/" + "/".join(segments) + "?" + query).encode()
    assert by_template(template, template)(target) == target
