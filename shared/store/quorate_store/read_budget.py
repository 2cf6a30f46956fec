"""How much one transaction may read. Pure.

A transaction is applied in one turn of the event loop, on every member; and when one brings a member down, it does so
again at the next start, for it is in the log. So what it reads is bounded before anything is done. etcd has no such
bound; 128 ranges over a large store end it.
"""

from quorate_core.errors import InvalidRequest

TXN_KEYS_READ_MAX = 100_000
TXN_BYTES_READ_MAX = 64 * 1024 * 1024


class ReadBudget:
    """What is left of it, for all comparisons and ranges of one transaction."""

    __slots__ = ("_bytes_left", "_keys_left")

    def __init__(self, keys: int = TXN_KEYS_READ_MAX, size_bytes: int = TXN_BYTES_READ_MAX) -> None:
        self._keys_left = keys
        self._bytes_left = size_bytes

    def spend(self, size_bytes: int) -> None:
        """One more key is looked at, of which so many bytes are read. Raises InvalidRequest."""
        self._keys_left -= 1
        self._bytes_left -= size_bytes
        if self._keys_left < 0 or self._bytes_left < 0:
            raise InvalidRequest(
                f"the transaction reads over {TXN_KEYS_READ_MAX} keys or {TXN_BYTES_READ_MAX} bytes; read in parts, "
                "outside of it"
            )
