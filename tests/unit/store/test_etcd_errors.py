"""What refusals of etcd's API mean: above all, whether a write may have been done."""

import json

import pytest
from quorate_core.errors import (
    Compacted,
    Conflict,
    FutureRevision,
    InvalidRequest,
    NotFound,
    NotProposed,
    OutcomeUnknown,
    PayloadTooLarge,
    QuorateError,
    QuotaExceeded,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from quorate_store.etcd.errors import AnswerTooLarge, error_of, goes_on_elsewhere
from quorate_store.refusals import DuplicateKey, KeyNotProvided, LeaseExists, TooManyOperations

REQUEST_BYTES = 3_000_000
"""Of the request that is refused."""


def said(code: int, text: str, status: int = 503, *, is_write: bool = True, retry: str = "") -> QuorateError:
    body = json.dumps({"error": text, "message": text, "code": code}).encode()
    return refused(status, body, is_write=is_write, retry=retry)


def refused(status: int, body: bytes, *, is_write: bool, retry: str = "") -> QuorateError:
    return error_of(status, body, is_write=is_write, request_bytes=REQUEST_BYTES, retry=retry)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (11, "etcdserver: mvcc: required revision has been compacted", Compacted),
        (11, "etcdserver: mvcc: required revision is a future revision", FutureRevision),
        (5, "etcdserver: requested lease not found", NotFound),
        (9, "etcdserver: lease already exists", LeaseExists),
        (3, "etcdserver: request is too large", PayloadTooLarge),
        (8, "etcdserver: mvcc: database space exceeded", QuotaExceeded),
        (8, "etcdserver: too many requests", TooManyRequests),
        (8, "grpc: received message larger than max (2097160 vs. 2097152)", PayloadTooLarge),
        (3, "etcdserver: key is not provided", KeyNotProvided),
        (3, "etcdserver: duplicate key given in txn request", DuplicateKey),
        (3, "etcdserver: too many operations in txn request", TooManyOperations),
        (3, "what a later etcd finds wrong", InvalidRequest),
        (9, "what a later etcd is not in the state for", Conflict),
        (16, "etcdserver: invalid auth token", Unauthenticated),
    ],
)
def test_a_refusal_is_the_ports_own_whether_of_a_read_or_a_write(
    code: int, text: str, kind: type[QuorateError]
) -> None:
    for is_write in (True, False):
        error = said(code, text, is_write=is_write)
        assert type(error) is kind
        assert error.detail == text


@pytest.mark.parametrize(
    "text",
    [
        "grpc: received message larger than max (4778467 vs. 4194304)",
        "grpc: received message after decompression larger than max (4778467 vs. 4194304)",
        "grpc: received message after decompression larger than max",
    ],
)
def test_when_the_answer_is_too_large_a_write_may_be_done_and_a_read_may_ask_for_less(text: str) -> None:
    assert isinstance(said(8, text, 429), OutcomeUnknown)
    assert isinstance(said(8, text, 429, is_write=False), AnswerTooLarge)


def test_what_is_exhausted_somewhere_else_leaves_a_writes_outcome_open() -> None:
    text = "stream terminated by RST_STREAM with error code: ENHANCE_YOUR_CALM"
    assert isinstance(said(8, text, 429), OutcomeUnknown)
    assert isinstance(said(8, text, 429, is_write=False), TooManyRequests)
    assert isinstance(said(8, "20000 watches are open", 429, retry="safe"), TooManyRequests)


def test_without_a_leader_nothing_is_done() -> None:
    assert isinstance(said(14, "etcdserver: no leader"), NotProposed)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (14, "etcdserver: request timed out"),
        (14, "etcdserver: request timed out, possibly due to previous leader failure"),
        (14, "etcdserver: request timed out, possibly due to connection lost"),
        (14, "etcdserver: leader changed"),
        (14, "etcdserver: server stopped"),
        (14, "transport is closing"),
        (4, "context deadline exceeded"),
        (2, "raft: stopped"),
        (13, "whatever goes wrong inside"),
    ],
)
def test_what_may_come_while_an_outcome_is_awaited_leaves_a_writes_outcome_open(code: int, text: str) -> None:
    assert isinstance(said(code, text), OutcomeUnknown)
    read = said(code, text, is_write=False)
    assert isinstance(read, Unavailable)
    assert goes_on_elsewhere(read)


def test_our_own_nodes_say_what_became_of_a_write() -> None:
    text = "there is no leader"
    assert isinstance(said(14, text, retry="safe"), NotProposed)
    assert isinstance(said(4, text, retry="unknown"), OutcomeUnknown)
    assert isinstance(said(14, text), OutcomeUnknown)


def test_a_problem_of_a_node_is_raised_as_it_was() -> None:
    body = json.dumps(
        {"type": "urn:quorate:problem:unauthenticated", "title": "no", "status": 401, "detail": "a token"}
    )
    error = refused(401, body.encode(), is_write=True)
    assert isinstance(error, Unauthenticated)
    assert error.detail == "a token"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"code": "no number"}', b"\xff", b"[" * 100_000])
def test_an_answer_of_somebody_else_leaves_a_writes_outcome_open_unless_its_status_says(body: bytes) -> None:
    assert isinstance(refused(502, body, is_write=True), OutcomeUnknown)
    assert isinstance(refused(502, body, is_write=False), Unavailable)
    assert isinstance(refused(401, body, is_write=True), Unauthenticated)
    assert isinstance(refused(413, body, is_write=True), PayloadTooLarge)


def test_an_older_etcd_has_its_text_in_another_place() -> None:
    body = b'{"error":"etcdserver: requested lease not found","code":5}'
    assert isinstance(refused(404, body, is_write=True), NotFound)


def test_a_reason_is_not_longer_than_can_be_shown() -> None:
    long = "x" * 100_000
    assert len(said(2, long, is_write=False).detail) <= 300
    for problem in ({"detail": long}, {"detail": "", "title": long}):
        assert len(refused(500, json.dumps(problem).encode(), is_write=False).detail) <= 300
