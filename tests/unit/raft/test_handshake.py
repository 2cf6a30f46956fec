"""How two members prove to each other that they are of one cluster: no I/O here."""

from dataclasses import replace

import msgspec
import pytest
from quorate_raft.runtime.handshake import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    AcceptorHandshake,
    Credentials,
    DialerHandshake,
    HandshakeRefused,
)

A = Credentials("cluster-1", "a", b"the secret of the cluster")
B = replace(A, name="b")


def dialer(own: Credentials = A, to: str = "b", nonce: bytes = b"1" * NONCE_BYTES) -> DialerHandshake:
    return DialerHandshake(own, to, nonce)


def acceptor(own: Credentials = B, nonce: bytes = b"2" * NONCE_BYTES) -> AcceptorHandshake:
    return AcceptorHandshake(own, ["a", "c"], nonce)


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
        (replace(A, cluster_id="cluster-2"), "b", "a is of cluster 'cluster-2', b of 'cluster-1'"),
        (replace(A, name="z"), "b", "'z' is not a peer of b"),
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
        msgspec.msgpack.encode(["hello", PROTOCOL_VERSION, "cluster-1", "a", "b", b"short"]),
    ],
    ids=["nothing", "http", "proof first", "challenge", "another version", "short nonce"],
)
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
