"""The leases as replicated state: who has been granted what, and which keys each holds. Deadlines are the leader's
alone and live elsewhere (`leases.py`)."""

from collections.abc import Iterable, Iterator

import lmdb
from quorate_core.errors import NotFound

from quorate_store.database import Database, LeaseRow
from quorate_store.refusals import LeaseExists

LEASE_COST_BYTES = 128
"""What a lease counts against the quota."""


class LeaseTable:
    """Rows in memory over rows in LMDB; the keys of each lease are kept in memory only, since key-values name
    their lease."""

    def __init__(self, database: Database, rows: dict[int, LeaseRow]) -> None:
        """`rows` are all that LMDB holds; the keys attached to them are for the caller to say."""
        self._database = database
        self._rows = rows
        self._keys: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, lease: int) -> bool:
        return lease in self._rows

    def __iter__(self) -> Iterator[tuple[int, LeaseRow]]:
        return iter(self._rows.items())

    def ids(self) -> tuple[int, ...]:
        """Of all that are there now; a millisecond for 500,000."""
        return tuple(self._rows)

    def get(self, lease: int) -> LeaseRow | None:
        return self._rows.get(lease)

    def require(self, lease: int) -> LeaseRow:
        row = self._rows.get(lease)
        if row is None:
            raise NotFound(f"lease {lease} does not exist; it has ended, or was never granted")
        return row

    def keys(self, lease: int) -> Iterable[bytes]:
        """In order, so that every member deletes them in the same one."""
        return sorted(self._keys.get(lease, ()))

    def key_count(self, lease: int) -> int:
        return len(self._keys.get(lease, ()))

    @property
    def cost_bytes(self) -> int:
        return len(self._rows) * LEASE_COST_BYTES

    def grant(self, txn: lmdb.Transaction, lease: int, row: LeaseRow) -> None:
        if lease in self._rows:
            raise LeaseExists(f"lease {lease} exists already")
        self._save(txn, lease, row)

    def checkpoint(self, txn: lmdb.Transaction, lease: int, remaining_ms: int) -> None:
        row = self._rows[lease]
        self._save(txn, lease, LeaseRow(row.ttl_s, row.generation, remaining_ms))

    def remove(self, txn: lmdb.Transaction, lease: int) -> None:
        """Its keys must be gone already."""
        self._database.delete_lease(txn, lease)
        del self._rows[lease]
        self._keys.pop(lease, None)

    def _save(self, txn: lmdb.Transaction, lease: int, row: LeaseRow) -> None:
        self._database.put_lease(txn, lease, row)
        self._rows[lease] = row

    def attach(self, lease: int, key: bytes) -> None:
        self._keys.setdefault(lease, set()).add(key)

    def detach(self, lease: int, key: bytes) -> None:
        keys = self._keys.get(lease)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._keys[lease]

    def shed(self, leases_max: int) -> bool:
        """Drop up to `leases_max` leases of a table that nobody uses any more; True when none is left."""
        for _ in range(min(leases_max, len(self._rows))):
            self._keys.pop(self._rows.popitem()[0], None)
        return not self._rows
