"""TLS for clients: the certificate, its change while connections go on, and the acceptor of a port that speaks it.

A certificate is loaded whole, with its key, before it takes the place of the one before: a reload that fails changes
nothing. A connection keeps the certificate that it began with, so that a reload ends none.

The acceptor looks at a connection's first byte before the handshake. What is no TLS is answered with a plain 400, since
someone who has typed `http://` for `https://` learns nothing from a connection that is just closed.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography.x509 import load_pem_x509_certificates
from quorate_core.errors import SettingsError
from quorate_core.tasks import TaskOwner

from quorate_gateway.proxy.refusals import Refusal

HANDSHAKES_MAX = 1_024
"""Connections whose handshake is not done; further ones wait in the kernel."""
SHUTDOWN_TIMEOUT_S = 2.0
"""For the peer's close_notify; who does not send it is cut off, with nothing lost."""
ACCEPT_PAUSE_S = 0.1
"""After an accept that failed for want of files or memory."""
_HANDSHAKE_RECORD = b"\x16"
"""TLSPlaintext.type of a ClientHello (RFC 8446, section 5.1)."""
_OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger(__name__)


class Certificate:
    """The certificate chain and key of a listener, from two PEM files. `context` is what new connections use.

    Raises SettingsError when they cannot be loaded, or do not belong together.
    """

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        self.certificate_file = certificate_file
        self.key_file = key_file
        self._loaded = self._files()  # before they are read, so that a change meanwhile is not missed
        self.context = self._load()
        self.not_after_s = self._read_not_after()
        """When the certificate itself, not its chain, ends to be valid, in seconds since the Unix epoch."""

    def reload(self) -> None:
        """Use for new connections what the files hold now. Raises SettingsError, and keeps what there was."""
        files = self._files()
        context, not_after_s = self._load(), self._read_not_after()
        self.context, self.not_after_s = context, not_after_s
        self._loaded = files

    @property
    def has_changed(self) -> bool:
        """Whether the files are others than those that were loaded."""
        return self._files() != self._loaded

    def _files(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_identity(path) for path in (self.certificate_file, self.key_file))

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate_file, self.key_file, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = f"certificate {self.certificate_file} and key {self.key_file}"
            raise SettingsError(f"{files} cannot be used: {error.strerror or error}" if isinstance(error, OSError)
                                else f"{files} cannot be used: {error}") from error  # fmt: skip
        return context

    def _read_not_after(self) -> float:
        try:
            leaf = load_pem_x509_certificates(self.certificate_file.read_bytes())[0]
        except (OSError, ValueError) as error:
            raise SettingsError(f"certificate {self.certificate_file} cannot be used: {error}") from error
        return leaf.not_valid_after_utc.timestamp()


class TlsAcceptor:
    """Accepts connections from `listener`, until it is closed. `connect` makes the protocol of one, with the refusal
    that it is to be answered with, if any; `handshake_timeout_s` is from its first moment on."""

    def __init__(
        self,
        listener: socket.socket,
        certificate: Certificate,
        connect: Callable[[Refusal | None], asyncio.Protocol],
        tasks: TaskOwner,
        handshake_timeout_s: float,
    ) -> None:
        self._listener = listener
        self._certificate = certificate
        self._connect = connect
        self._tasks = tasks
        self._timeout_s = handshake_timeout_s
        self._free = asyncio.Semaphore(HANDSHAKES_MAX)
        self._accepting: asyncio.Task[None] | None = None
        self.handshakes_failed = 0

    def start(self, backlog: int) -> None:
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._accepting = self._tasks.start(self._accept_forever(), "tls-accept")

    def close(self) -> None:
        """Accept nothing more; handshakes that have begun go on."""
        if self._accepting is not None:
            self._accepting.cancel()
        self._listener.close()

    @property
    def is_full(self) -> bool:
        """Whether as many handshakes run as may."""
        return self._free.locked()

    async def take(self, connection: socket.socket) -> None:
        """One that somebody else has accepted; until its handshake is done."""
        await self._free.acquire()
        await self._shake_hands(connection)

    async def _accept_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._free.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._free.release()
                if error.errno in _OUT_OF:
                    log.warning("accept_failed", reason=error.strerror)
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            self._tasks.start(self._shake_hands(connection), "tls-handshake")

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._open(connection)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.handshakes_failed += 1
            log.debug("handshake_failed", reason=str(error) or type(error).__name__)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            self._free.release()

    async def _open(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first = await _first_byte(connection)
        if not first:
            connection.close()
        elif first == _HANDSHAKE_RECORD:
            await loop.connect_accepted_socket(
                lambda: self._connect(None), connection, ssl=self._certificate.context,
                ssl_handshake_timeout=self._timeout_s, ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )  # fmt: skip
        else:
            refusal = Refusal("tls-required", 400, "plain HTTP came to a port that speaks TLS: use https://")
            await loop.connect_accepted_socket(lambda: self._connect(refusal), connection)


async def _first_byte(connection: socket.socket) -> bytes:
    """Looked at, and left where it is; empty when the peer has left."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _settle, readable)
    try:
        await readable
    finally:
        loop.remove_reader(connection)
    return connection.recv(1, socket.MSG_PEEK)


def _settle(readable: "asyncio.Future[None]") -> None:
    if not readable.done():
        readable.set_result(None)


def _no_password() -> str:
    """Without it a key with a password would be asked for on the terminal."""
    raise ValueError("the key has a password; a gateway that starts by itself cannot be asked for one")


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
