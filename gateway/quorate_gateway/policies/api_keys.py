"""API keys: from what a caller presents to whose key it is.

The gateway knows digests only. A key is looked up by its SHA-256 in a dictionary, so that the time this takes says
nothing about any key: whoever could learn how much of a digest agrees would have to choose digests, and can only choose
keys. A plain digest is enough because a key is 256 random bits, of which no list can be tried (unlike passwords).

There is one `ApiKeys` for a data plane. Routes hold on to it over all snapshots, so that what is published holds from
the next request on, also on connections that are open.
"""

import hashlib
from typing import NamedTuple

from quorate_gateway.documents.access import ApiKeysDocument

KEY_BYTES_MAX = 512
"""Of a key as it is presented: nobody makes larger ones."""


class KnownKey(NamedTuple):
    """`expires_at_s`: not valid from then on, in seconds since the Unix epoch; infinite when it always is."""

    id: bytes
    enabled: bool
    expires_at_s: float


class ApiKeys:
    """The keys in force. Before the first `replace` nothing is known, which is not the same as that there are none."""

    __slots__ = ("_by_digest", "is_known")

    def __init__(self) -> None:
        self._by_digest: dict[bytes, KnownKey] = {}
        self.is_known = False

    def __len__(self) -> int:
        return len(self._by_digest)

    def replace(self, document: ApiKeysDocument) -> None:
        """These keys from now on, and no others."""
        self._by_digest = {
            bytes.fromhex(key.sha256): KnownKey(key.id.encode("ascii"), key.enabled, key.expires_at_s)
            for key in document.keys
        }
        self.is_known = True

    def find(self, key: bytes) -> KnownKey | None:
        """Whose key it is, whether it is valid now or not; None when it is nobody's."""
        if len(key) > KEY_BYTES_MAX:
            return None
        return self._by_digest.get(hashlib.sha256(key).digest())
