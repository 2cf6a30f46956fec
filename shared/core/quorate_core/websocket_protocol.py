"""uvicorn's WebSocket protocol, with the way out that it does not have: for a client that does not read, an orderly
close waits behind all that is buffered for it."""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from quorate_core.http_protocol import ABORT_EXTENSION


class AbortableWebSocket(WebSocketsSansIOProtocol):
    """Its application finds `ABORT_EXTENSION` in its scope's extensions, as one of HTTP does."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.handshake_complete:  # otherwise it was refused, and there is no application
            self.scope["extensions"][ABORT_EXTENSION] = {"abort": self.transport.abort}
