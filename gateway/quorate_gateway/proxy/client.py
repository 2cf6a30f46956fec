"""What an exchange needs of its client's connection: the port between the two."""

from typing import Protocol

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.tunnel import Tunnel, TunnelUpstream


class Client(Protocol):
    forwarded: bytes
    """The block of fields that say who the client is."""

    def write(self, data: bytes) -> None: ...

    def hold_body(self, held: bool) -> None:
        """Stop, or go on, reading the request's body."""
        ...

    def hold_answer(self) -> bool:
        """Whether the client's buffer is full."""
        ...

    def unsent_bytes(self) -> int:
        """What the client's buffer holds."""
        ...

    def stays_open(self) -> bool:
        """Whether another request may follow this one."""
        ...

    def answered(self, *, keeps_alive: bool, now_s: float) -> None: ...

    def tunnelled(
        self, upstream: TunnelUpstream, rest: bytes, idle_timeout_s: float, ends_at_s: float | None
    ) -> Tunnel:
        """What is written from here on, after `rest`, is a tunnel's."""
        ...

    def refuse(self, refusal: Refusal, route: CompiledRoute | None) -> None: ...

    def cut_short(self) -> None: ...
