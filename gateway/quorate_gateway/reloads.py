"""What is read again while the gateway runs: the token on SIGHUP, the certificate then and when its files change.

What cannot be read changes nothing: it is told of, and what there was stays in force. No connection is dropped: those
that are open keep what they began with.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from quorate_core.errors import SettingsError
from quorate_core.secrets import load_secret

from quorate_gateway.proxy.tls import Certificate

CERTIFICATE_INTERVAL_S = 10.0
"""How often its files are looked at."""

log = structlog.get_logger(__name__)


class Reloads:
    """`use_token` is given what the token's file holds; `reloaded` is called when there is another certificate."""

    def __init__(
        self,
        token_file: Path | None,
        use_token: Callable[[str], None],
        certificate: Certificate | None,
        reloaded: Callable[[], None],
        interval_s: float = CERTIFICATE_INTERVAL_S,
    ) -> None:
        self._token_file = token_file
        self._use_token = use_token
        self._certificate = certificate
        self._reloaded = reloaded
        self._interval_s = interval_s

    def read_again(self) -> None:
        """Everything."""
        log.info("reloading")
        if self._token_file is not None:
            try:
                self._use_token(load_secret(self._token_file))
            except SettingsError as error:
                log.error("token_not_reloaded", reason=error.detail)
        if self._certificate is not None:
            self._reload(self._certificate)

    async def watch_certificate(self) -> None:
        """Reload it whenever its files have changed."""
        certificate = self._certificate
        while certificate is not None:
            await asyncio.sleep(self._interval_s)
            if certificate.has_changed:
                self._reload(certificate)

    def _reload(self, certificate: Certificate) -> None:
        try:
            certificate.reload()
        except SettingsError as error:
            log.error("certificate_not_reloaded", reason=error.detail)
            return
        log.info("certificate_reloaded", file=str(certificate.certificate_file))
        self._reloaded()
