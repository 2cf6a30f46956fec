"""How two members prove to each other that they are of one cluster and hold its secret, which is never sent.

    dialer                                   acceptor
      Hello(cluster, names, nonce)   ->        refuses another cluster, an unknown name, a wrong address
                                     <-      Challenge(nonce)
      Proof(mac)                     ->        refuses a mac that does not fit
                                     <-      Welcome(mac)
      refuses a mac that does not fit

Either mac is HMAC-SHA256 under the secret over the role, both names, the cluster and both nonces, so that neither can
be replayed, nor sent back to where it came from. The acceptor says why it refuses, so that both ends can log it.
"""

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from quorate_core.errors import Unauthenticated

from quorate_raft.core.messages import MemberName

PROTOCOL_VERSION = 1
NONCE_BYTES = 32
REASON_CHARS_MAX = 500
HANDSHAKE_BYTES_MAX = 4096
"""What a stranger may make us hold."""


class HandshakeRefused(Unauthenticated):
    """`answer` is what the other side is told, or empty."""

    def __init__(self, detail: str, answer: bytes = b"") -> None:
        super().__init__(detail)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Credentials:
    cluster_id: str
    name: MemberName
    secret: bytes


class _Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    version: int
    cluster_id: str
    sender: MemberName
    to: MemberName
    nonce: bytes


class _Challenge(msgspec.Struct, frozen=True, array_like=True, tag="challenge"):
    nonce: bytes


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    mac: bytes


class _Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    mac: bytes


class _Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refusal"):
    reason: str


_encode = msgspec.msgpack.Encoder().encode
_Step = _Hello | _Challenge | _Proof | _Welcome | _Refusal
_step_decoder: msgspec.msgpack.Decoder[_Step] = msgspec.msgpack.Decoder(_Step)


class DialerHandshake:
    """`receive` what the acceptor says and send what that returns, until `is_complete`."""

    def __init__(self, own: Credentials, peer: MemberName, nonce: bytes) -> None:
        self.peer = peer
        self.is_complete = False
        self._own = own
        self._hello = _Hello(PROTOCOL_VERSION, own.cluster_id, own.name, peer, nonce)
        self._challenge: _Challenge | None = None

    def opening(self) -> bytes:
        return _encode(self._hello)

    def receive(self, payload: bytes) -> bytes:
        """Returns what to send, maybe nothing. Raises HandshakeRefused."""
        step = _decode(payload)
        if isinstance(step, _Refusal):
            raise HandshakeRefused(f"{self.peer} refuses: {step.reason[:REASON_CHARS_MAX]}")
        if isinstance(step, _Challenge) and self._challenge is None and len(step.nonce) == NONCE_BYTES:
            self._challenge = step
            return _encode(_Proof(_mac(self._own, "dialer", self._hello, step)))
        if isinstance(step, _Welcome) and self._challenge is not None:
            if not hmac.compare_digest(step.mac, _mac(self._own, "acceptor", self._hello, self._challenge)):
                raise HandshakeRefused(f"who answers as {self.peer} does not hold this cluster's secret")
            self.is_complete = True
            return b""
        raise HandshakeRefused(f"{self.peer} does not keep to the handshake")


class AcceptorHandshake:
    """As `DialerHandshake`, for whoever connects. `peer` is a claim until `is_complete`."""

    def __init__(self, own: Credentials, peers: Collection[MemberName], nonce: bytes) -> None:
        self.peer = ""
        self.is_complete = False
        self._own = own
        self._peers = peers
        self._challenge = _Challenge(nonce)
        self._hello: _Hello | None = None

    def receive(self, payload: bytes) -> bytes:
        """Returns what to send. Raises HandshakeRefused."""
        step = _decode(payload)
        if isinstance(step, _Hello) and self._hello is None:
            self._require_known(step)
            self._hello, self.peer = step, step.sender
            return _encode(self._challenge)
        if isinstance(step, _Proof) and self._hello is not None:
            if not hmac.compare_digest(step.mac, _mac(self._own, "dialer", self._hello, self._challenge)):
                raise _refusal(f"the cluster secret of {self.peer} is not the one of {self._own.name}")
            self.is_complete = True
            return _encode(_Welcome(_mac(self._own, "acceptor", self._hello, self._challenge)))
        raise _refusal("this is not the handshake of a member")

    def _require_known(self, hello: _Hello) -> None:
        own = self._own
        if hello.version != PROTOCOL_VERSION:
            raise _refusal(f"version {hello.version} of the peer protocol is not spoken here, but {PROTOCOL_VERSION}")
        if hello.cluster_id != own.cluster_id:
            raise _refusal(f"{hello.sender} is of cluster {hello.cluster_id!r}, {own.name} of {own.cluster_id!r}")
        if hello.to != own.name:
            raise _refusal(f"{hello.to!r} was called at the address of {own.name!r}")
        if hello.sender not in self._peers:
            raise _refusal(f"{hello.sender!r} is not a peer of {own.name}")
        if len(hello.nonce) != NONCE_BYTES:
            raise _refusal(f"a nonce has {NONCE_BYTES} bytes")


def _decode(payload: bytes) -> _Step:
    try:
        return _step_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise _refusal("this is not the handshake of a member") from error


def _refusal(reason: str) -> HandshakeRefused:
    return HandshakeRefused(reason[:REASON_CHARS_MAX], _encode(_Refusal(reason[:REASON_CHARS_MAX])))


def _mac(own: Credentials, role: str, hello: _Hello, challenge: _Challenge) -> bytes:
    return hmac.digest(own.secret, _encode((role, hello, challenge)), hashlib.sha256)
