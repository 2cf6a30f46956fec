"""What the clients' histories are judged by: documents whose versions count, and unknown puts that reads tell of."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_simulation.linearizability import Operation, Result, check
from quorate_simulation.models import KeyAnswer, KeyCall, KeyModel, Verb
from support.fault_clients import settled
from support.fault_documents import DocumentModel, Found, Publish, Published, Read, Refused

KEY = b"k"
NAME = "default/faults/a.txt"
Answer = Found | Published | Refused


def publish(content: str, answer: Answer | None, began_s: float, over: int | None = None) -> Operation:
    """It takes half a second; without an answer it never ends."""
    ended_s = None if answer is None else began_s + 0.5
    return Operation(1, Publish(NAME, content, over), answer, began_s, ended_s)


def read(answer: Found, began_s: float) -> Operation:
    return Operation(2, Read(NAME), answer, began_s, began_s + 0.5)


@pytest.mark.parametrize(
    ("name", "history"),
    [
        ("versions count", [publish("a", Published(1), 0), publish("b", Published(2), 1), read(Found(2, "b"), 2)]),
        ("nothing there", [read(Found(0, None), 0), publish("a", Published(1), 1, over=0)]),
        ("over another version", [publish("a", Published(1), 0), publish("b", Refused(1), 1, over=0)]),
        ("unknown, and it was", [publish("a", None, 0), publish("b", Published(2), 1), read(Found(2, "b"), 2)]),
        ("unknown, and it was not", [publish("a", None, 0), publish("b", Published(1), 1)]),
        ("unknown, and too late", [publish("a", None, 0, over=0), publish("b", Published(1), 1)]),
    ],
)
def test_histories_of_a_document_that_can_be(name: str, history: list[Operation]) -> None:
    assert check(DocumentModel(), history).result is Result.LINEARIZABLE, name


@pytest.mark.parametrize(
    ("name", "history"),
    [
        ("a write that is lost", [publish("a", Published(1), 0), publish("b", Published(1), 1)]),
        ("a write applied twice", [publish("a", Published(1), 0), publish("b", Published(3), 1)]),
        ("an unknown one applied twice", [publish("a", None, 0), publish("b", Published(3), 1)]),
        ("a stale read", [publish("a", Published(1), 0), publish("b", Published(2), 1), read(Found(1, "a"), 2)]),
        ("two over one version", [publish("a", Published(1), 0, over=0), publish("b", Published(2), 1, over=0)]),
        ("refused over the right version", [publish("a", Published(1), 0), publish("b", Refused(1), 1, over=1)]),
        ("refused by a version that never was", [publish("a", Published(1), 0), publish("b", Refused(2), 1, over=0)]),
        ("content that nobody published", [read(Found(1, "a"), 0)]),
    ],
)
def test_histories_of_a_document_that_cannot_be(name: str, history: list[Operation]) -> None:
    assert check(DocumentModel(), history).result is Result.NOT_LINEARIZABLE, name


@st.composite
def key_histories(draw: st.DrawFn) -> list[Operation]:
    """Puts of different values, some of unknown outcome, and gets of any of these, or of one that nobody put."""
    history = []
    for number in range(draw(st.integers(1, 6))):
        began_s, took_s = draw(st.integers(0, 6)), draw(st.integers(0, 4))
        revision = draw(st.integers(2, 5))
        if draw(st.booleans()):
            is_known = draw(st.booleans())
            answer = KeyAnswer(revision=revision) if is_known else None
            call = KeyCall(Verb.PUT, KEY, b"%d" % number)
            history.append(Operation(number, call, answer, began_s, began_s + took_s if is_known else None))
        else:
            found = draw(st.sampled_from([None, b"0", b"1", b"2"]))
            answer = KeyAnswer(found, revision=revision if found is not None else 0)
            history.append(Operation(number, KeyCall(Verb.GET, KEY), answer, began_s, began_s + took_s))
    return history


@given(key_histories())
@settings(max_examples=600, deadline=None)
def test_what_reads_tell_of_unknown_puts_changes_no_verdict(history: list[Operation]) -> None:
    assert check(KeyModel(), settled(history)).result is check(KeyModel(), history).result
