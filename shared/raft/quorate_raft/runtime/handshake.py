"""How two members prove to each other that they are of one cluster and hold its secret, which is never sent.

    dialer                                           acceptor
      Hello(cluster, names, nonce, purpose,  ->        refuses another cluster, a wrong address
            own address)
                                             <-      Challenge(nonce)
      Proof(mac)                             ->        refuses a mac that does not fit
                                             <-      Welcome(mac), or Removed(mac)
      refuses a mac that does not fit

Each mac is HMAC-SHA256 under the secret over the role and everything that Hello and Challenge say (both names, the
cluster, the version, what the connection is for, both nonces), so that none can be replayed, sent back to where it came
from, or moved to a connection of another purpose. The acceptor says why it refuses, so that both ends can log it. That
is a word of somebody who has proven nothing; that a member was *removed*, which ends it, is believed only with a mac.

Who holds the secret and is not known here is let in as a *guest*, and says where it can be reached: a member that was
away while another was added, or that joins, must hear a leader of whom it cannot know yet.
"""

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from quorate_core.errors import InvalidRequest, Unauthenticated

from quorate_raft.core.messages import MemberName
from quorate_raft.runtime.wire import decode

PROTOCOL_VERSION = 2
NONCE_BYTES = 32
REASON_CHARS_MAX = 500
HANDSHAKE_BYTES_MAX = 4096
"""What a stranger may make us hold."""

_DIALER, _ACCEPTOR, _REMOVED = "dialer", "acceptor", "removed"


class Purpose(StrEnum):
    """What a connection is for."""

    MESSAGES = "messages"
    """Messages and calls, for as long as both live."""
    SNAPSHOT = "snapshot"
    """One snapshot, from the dialer to the acceptor."""


class HandshakeRefused(Unauthenticated):
    """`answer` is what the other side is told, or empty."""

    def __init__(self, detail: str, answer: bytes = b"") -> None:
        super().__init__(detail)
        self.answer = answer


class ToldRemoved(HandshakeRefused):
    """A member, proven, says that this one was removed from the cluster."""


@dataclass(frozen=True, slots=True)
class Credentials:
    cluster_id: str
    name: MemberName
    secret: bytes


@dataclass(slots=True)
class Callers:
    """Who may call, and who is told that it was removed. Its owner changes it; a handshake goes by what holds at each
    of its steps."""

    members: Collection[MemberName] = ()
    removed: Collection[MemberName] = ()
    guests_left: int = 0
    """How many more who are proven, and not known here, may come in."""


class _Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    version: int
    cluster_id: str
    sender: MemberName
    to: MemberName
    nonce: bytes
    # Text, and not the enumeration: who speaks another version is to be told so, whatever the purposes there are.
    purpose: str = ""
    address: str = ""
    """Where the sender is reached, host:port, as far as it knows."""


class _Challenge(msgspec.Struct, frozen=True, array_like=True, tag="challenge"):
    nonce: bytes


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    mac: bytes


class _Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    mac: bytes


class _Removed(msgspec.Struct, frozen=True, array_like=True, tag="removed"):
    mac: bytes


class _Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refusal"):
    reason: str


_encode = msgspec.msgpack.Encoder().encode
_Step = _Hello | _Challenge | _Proof | _Welcome | _Removed | _Refusal
_step_decoder: msgspec.msgpack.Decoder[_Step] = msgspec.msgpack.Decoder(_Step)


class DialerHandshake:
    """`receive` what the acceptor says and send what that returns, until `is_complete`."""

    def __init__(
        self,
        own: Credentials,
        peer: MemberName,
        nonce: bytes,
        purpose: Purpose = Purpose.MESSAGES,
        own_address: str = "",
    ) -> None:
        self.peer = peer
        self.purpose = purpose
        self.is_complete = False
        self._own = own
        self._hello = _Hello(PROTOCOL_VERSION, own.cluster_id, own.name, peer, nonce, purpose.value, own_address)
        self._challenge: _Challenge | None = None

    def opening(self) -> bytes:
        return _encode(self._hello)

    def receive(self, payload: bytes) -> bytes:
        """Returns what to send, maybe nothing. Raises HandshakeRefused, or ToldRemoved."""
        if self.is_complete:
            raise HandshakeRefused(f"{self.peer} does not keep to the handshake")
        step, challenge = _decode(payload), self._challenge
        if isinstance(step, _Refusal):
            raise HandshakeRefused(f"{self.peer} refuses: {step.reason[:REASON_CHARS_MAX]}")
        if isinstance(step, _Challenge) and challenge is None and len(step.nonce) == NONCE_BYTES:
            self._challenge = step
            return _encode(_Proof(_mac(self._own, _DIALER, self._hello, step)))
        if isinstance(step, _Welcome) and challenge is not None:
            self._verify(step.mac, _ACCEPTOR, challenge)
            self.is_complete = True
            return b""
        if isinstance(step, _Removed) and challenge is not None:
            self._verify(step.mac, _REMOVED, challenge)
            raise ToldRemoved(f"{self.peer} says that {self._own.name} was removed from the cluster")
        raise HandshakeRefused(f"{self.peer} does not keep to the handshake")

    def _verify(self, mac: bytes, role: str, challenge: _Challenge) -> None:
        if not hmac.compare_digest(mac, _mac(self._own, role, self._hello, challenge)):
            raise HandshakeRefused(f"who answers as {self.peer} does not hold this cluster's secret")


class AcceptorHandshake:
    """As `DialerHandshake`, for whoever connects. `peer`, `purpose` and `address` are claims until `is_complete`."""

    def __init__(self, own: Credentials, callers: Callers, nonce: bytes) -> None:
        self.peer = ""
        self.address = ""
        self.purpose = Purpose.MESSAGES
        self.is_complete = False
        self._own = own
        self._callers = callers
        self._challenge = _Challenge(nonce)
        self._hello: _Hello | None = None

    def receive(self, payload: bytes) -> bytes:
        """Returns what to send. Raises HandshakeRefused."""
        step, hello = _decode(payload), self._hello
        if isinstance(step, _Hello) and hello is None:
            self._require_acceptable(step)
            self._hello, self.peer, self.purpose, self.address = step, step.sender, Purpose(step.purpose), step.address
            return _encode(self._challenge)
        if isinstance(step, _Proof) and hello is not None and not self.is_complete:
            if not hmac.compare_digest(step.mac, _mac(self._own, _DIALER, hello, self._challenge)):
                raise _refusal(f"the cluster secret of {self.peer} is not the one of {self._own.name}")
            self._require_welcome(hello)
            self.is_complete = True
            return _encode(_Welcome(_mac(self._own, _ACCEPTOR, hello, self._challenge)))
        raise _refusal("this is not the handshake of a member")

    def _require_acceptable(self, hello: _Hello) -> None:
        own = self._own
        if hello.version != PROTOCOL_VERSION:
            raise _refusal(f"version {hello.version} of the peer protocol is not spoken here, but {PROTOCOL_VERSION}")
        if hello.cluster_id != own.cluster_id:
            raise _refusal(f"{hello.sender!r} is of cluster {hello.cluster_id!r}, {own.name} of {own.cluster_id!r}")
        if hello.to != own.name:
            raise _refusal(f"{hello.to!r} was called at the address of {own.name!r}")
        if hello.sender == own.name or not hello.sender:
            raise _refusal(f"{hello.sender!r} is not a peer of {own.name}")
        if not self._is_expected(hello.sender):
            raise _refusal(f"{hello.sender!r} is not a peer of {own.name}, which has as many guests as it takes")
        if len(hello.nonce) != NONCE_BYTES:
            raise _refusal(f"a nonce has {NONCE_BYTES} bytes")
        if hello.purpose not in list(Purpose):
            raise _refusal(f"a connection for {hello.purpose!r} is not known here")

    def _is_expected(self, sender: MemberName) -> bool:
        callers = self._callers
        return sender in callers.members or sender in callers.removed or callers.guests_left > 0

    def _require_welcome(self, hello: _Hello) -> None:
        """The caller is proven now."""
        if hello.sender in self._callers.members:
            return
        if hello.sender in self._callers.removed:
            mac = _mac(self._own, _REMOVED, hello, self._challenge)
            raise HandshakeRefused(f"{hello.sender} was removed from the cluster", _encode(_Removed(mac)))
        if not self._is_expected(hello.sender):
            raise _refusal(f"{hello.sender!r} is not a peer of {self._own.name}, which has as many guests as it takes")


def _decode(payload: bytes) -> _Step:
    try:
        return decode(_step_decoder, payload)
    except InvalidRequest as error:
        raise _refusal("this is not the handshake of a member") from error


def _refusal(reason: str) -> HandshakeRefused:
    return HandshakeRefused(reason[:REASON_CHARS_MAX], _encode(_Refusal(reason[:REASON_CHARS_MAX])))


def _mac(own: Credentials, role: str, hello: _Hello, challenge: _Challenge) -> bytes:
    return hmac.digest(own.secret, _encode((role, hello, challenge)), hashlib.sha256)
