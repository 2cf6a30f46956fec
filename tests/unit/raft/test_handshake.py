"""How two members prove to each other that they are of one cluster: no I/O here."""

from dataclasses import replace

import msgspec
import pytest
from quorate_raft.runtime.handshake import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    AcceptorHandshake,
    Callers,
    Credentials,
    DialerHandshake,
    HandshakeRefused,
    Purpose,
    ToldRemoved,
)

A = Credentials("cluster-1", "a", b"the secret of the cluster")
B = replace(A, name="b")


def dialer(own: Credentials = A, to: str = "b", nonce: bytes = b"1" * NONCE_BYTES) -> DialerHandshake:
    return DialerHandshake(own, to, nonce)


def acceptor(
    own: Credentials = B, nonce: bytes = b"2" * NONCE_BYTES, callers: Callers | None = None
) -> AcceptorHandshake:
    return AcceptorHandshake(own, callers or Callers({"a", "c"}, {"gone"}), nonce)


def test_two_members_with_one_secret_agree_and_the_secret_is_never_sent() -> None:
    one, other = dialer(), acceptor()
    hello = one.opening()
    challenge = other.receive(hello)
    proof = one.receive(challenge)
    assert not other.is_complete
    welcome = other.receive(proof)
    assert other.is_complete
    assert other.peer == "a"
    assert not one.is_complete
    assert one.receive(welcome) == b""
    assert one.is_complete
    assert all(A.secret not in said for said in (hello, challenge, proof, welcome))


@pytest.mark.parametrize(
    ("own", "to", "reason"),
    [
        (replace(A, cluster_id="cluster-2"), "b", "'a' is of cluster 'cluster-2', b of 'cluster-1'"),
        (replace(A, name="z"), "b", "'z' is not a peer of b, which has as many guests as it takes"),
        (replace(A, name="b"), "b", "'b' is not a peer of b"),
        (A, "c", "'c' was called at the address of 'b'"),
    ],
    ids=["another cluster", "a stranger", "its own name", "another address"],
)
def test_who_does_not_belong_is_refused_and_both_ends_know_why(own: Credentials, to: str, reason: str) -> None:
    one, other = dialer(own, to), acceptor()
    with pytest.raises(HandshakeRefused) as refused:
        other.receive(one.opening())
    assert refused.value.detail == reason
    with pytest.raises(HandshakeRefused, match=f"refuses: {reason}"):
        one.receive(refused.value.answer)


def test_a_wrong_secret_is_refused_by_the_acceptor() -> None:
    one, other = dialer(replace(A, secret=b"guessed")), acceptor()
    proof = one.receive(other.receive(one.opening()))
    with pytest.raises(HandshakeRefused, match="the cluster secret of a is not the one of b") as refused:
        other.receive(proof)
    assert not other.is_complete
    with pytest.raises(HandshakeRefused, match="b refuses: the cluster secret of a"):
        one.receive(refused.value.answer)


def test_an_acceptor_without_the_secret_is_refused_by_the_dialer() -> None:
    one = dialer()
    one.receive(acceptor(replace(B, secret=b"guessed")).receive(one.opening()))
    with pytest.raises(HandshakeRefused, match="does not hold this cluster's secret"):
        one.receive(msgspec.msgpack.encode(["welcome", b"\0" * 32]))


def test_a_proof_cannot_be_sent_back_to_where_it_came_from() -> None:
    """Reflection: the mac is over the role too."""
    one = dialer()
    proof = one.receive(acceptor().receive(one.opening()))
    (_, mac) = msgspec.msgpack.decode(proof)
    with pytest.raises(HandshakeRefused):
        one.receive(msgspec.msgpack.encode(["welcome", mac]))


def test_a_proof_cannot_be_replayed() -> None:
    """The nonces are of one handshake only."""
    one, other = dialer(), acceptor()
    proof = one.receive(other.receive(one.opening()))
    later = acceptor(nonce=b"3" * NONCE_BYTES)
    later.receive(one.opening())
    with pytest.raises(HandshakeRefused, match="the cluster secret"):
        later.receive(proof)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        msgspec.msgpack.encode(["proof", b"\0" * 32]),
        msgspec.msgpack.encode(["challenge", b"\0" * 32]),
        msgspec.msgpack.encode(["hello", PROTOCOL_VERSION + 1, "cluster-1", "a", "b", b"\0" * NONCE_BYTES]),
        msgspec.msgpack.encode(["hello", PROTOCOL_VERSION, "cluster-1", "a", "b", b"short", "messages"]),
        msgspec.msgpack.encode(["hello", PROTOCOL_VERSION, "cluster-1", "a", "b", b"\0" * NONCE_BYTES, "mining"]),
        b"\x97\xa5hello\x02\xa1\xff",
        b"\x98\xa5hello\x02\xa1c\xa1a\xa1b\xc4\x00\xa1m" + b"\x91" * 4000,
    ],
    ids=[
        "nothing", "http", "proof first", "challenge", "another version", "short nonce", "another purpose",
        "text that is no UTF-8", "nesting without end",
    ],
)  # fmt: skip
def test_an_acceptor_refuses_what_is_no_handshake(said: bytes) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        acceptor().receive(said)
    assert refused.value.answer


def test_steps_out_of_order_are_refused() -> None:
    one, other = dialer(), acceptor()
    challenge = other.receive(one.opening())
    with pytest.raises(HandshakeRefused):
        other.receive(one.opening())
    one.receive(challenge)
    with pytest.raises(HandshakeRefused, match="does not keep to the handshake"):
        one.receive(challenge)
    with pytest.raises(HandshakeRefused, match="does not keep to the handshake"):
        dialer().receive(msgspec.msgpack.encode(["welcome", b"\0" * 32]))
    with pytest.raises(HandshakeRefused):
        dialer().receive(msgspec.msgpack.encode(["challenge", b"short"]))


def test_who_was_removed_is_told_so_with_a_proof() -> None:
    one, other = dialer(replace(A, name="gone")), acceptor()
    with pytest.raises(HandshakeRefused, match="gone was removed from the cluster") as refused:
        other.receive(one.receive(other.receive(one.opening())))
    assert not other.is_complete
    with pytest.raises(ToldRemoved, match="b says that gone was removed"):
        one.receive(refused.value.answer)
    assert not one.is_complete


def test_who_only_says_that_it_was_removed_learns_nothing() -> None:
    """Being removed is told to nobody who does not hold the secret."""
    one, other = dialer(replace(A, name="gone", secret=b"guessed")), acceptor()
    proof = one.receive(other.receive(one.opening()))
    with pytest.raises(HandshakeRefused, match="the cluster secret of gone") as refused:
        other.receive(proof)
    with pytest.raises(HandshakeRefused) as heard:
        one.receive(refused.value.answer)
    assert not isinstance(heard.value, ToldRemoved)


@pytest.mark.parametrize("forged_from", ["nothing", "welcome"])
def test_a_member_is_not_ended_by_a_forged_word_that_it_was_removed(forged_from: str) -> None:
    one, other = dialer(), acceptor()
    proof = one.receive(other.receive(one.opening()))
    (_, mac) = msgspec.msgpack.decode(other.receive(proof))
    forged = mac if forged_from == "welcome" else b"\0" * 32
    with pytest.raises(HandshakeRefused, match="does not hold this cluster's secret") as heard:
        one.receive(msgspec.msgpack.encode(["removed", forged]))
    assert not isinstance(heard.value, ToldRemoved)


def test_nobody_is_told_that_it_was_removed_before_the_challenge() -> None:
    with pytest.raises(HandshakeRefused, match="does not keep to the handshake"):
        dialer().receive(msgspec.msgpack.encode(["removed", b"\0" * 32]))


def test_what_a_connection_is_for_is_proven_too() -> None:
    """Who changes it on the way is found out: the mac is over all that Hello says."""
    one = DialerHandshake(A, "b", b"1" * NONCE_BYTES, Purpose.SNAPSHOT)
    hello = msgspec.msgpack.decode(one.opening())
    assert hello[-2] == "snapshot"
    other = acceptor()
    challenge = other.receive(msgspec.msgpack.encode([*hello[:-2], "messages", hello[-1]]))
    with pytest.raises(HandshakeRefused, match="the cluster secret of a"):
        other.receive(one.receive(challenge))
    again, honest = DialerHandshake(A, "b", b"1" * NONCE_BYTES, Purpose.SNAPSHOT), acceptor()
    again.receive(honest.receive(again.receive(honest.receive(again.opening()))))
    assert again.is_complete
    assert honest.purpose is Purpose.SNAPSHOT


def test_a_handshake_goes_by_the_members_of_the_moment_that_it_ends() -> None:
    callers = Callers({"a"})
    one, other = dialer(), acceptor(callers=callers)
    proof = one.receive(other.receive(one.opening()))
    callers.members = ()
    with pytest.raises(HandshakeRefused, match="'a' is not a peer of b"):
        other.receive(proof)


def test_who_holds_the_secret_and_is_not_known_is_a_guest_while_there_is_room() -> None:
    """A member that was away while another was added must hear that one, or it hears no leader ever again."""
    one = DialerHandshake(replace(A, name="z"), "b", b"1" * NONCE_BYTES, Purpose.MESSAGES, "host-z:1")
    other = acceptor(callers=Callers({"a"}, guests_left=1))
    one.receive(other.receive(one.receive(other.receive(one.opening()))))
    assert other.is_complete
    assert (other.peer, other.address) == ("z", "host-z:1")


def test_who_speaks_an_older_version_is_told_which_one_is_spoken_here() -> None:
    older = msgspec.msgpack.encode(["hello", 1, "cluster-1", "a", "b", b"\0" * NONCE_BYTES])
    with pytest.raises(HandshakeRefused, match="version 1 of the peer protocol is not spoken here, but 2"):
        acceptor().receive(older)


def test_nothing_is_taken_in_after_the_end() -> None:
    one, other = dialer(), acceptor()
    proof = one.receive(other.receive(one.opening()))
    welcome = other.receive(proof)
    one.receive(welcome)
    for handshake, said in ((one, welcome), (other, proof)):
        with pytest.raises(HandshakeRefused):
            handshake.receive(said)
