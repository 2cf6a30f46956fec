"""A state machine's memory, built from its LMDB files: when a process starts, and when a snapshot takes the place of
the state. The second happens beside a running event loop, and so in small steps."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from quorate_core.errors import InvariantViolation

from quorate_store.database import Database, Meta
from quorate_store.key_index import Histories, KeyIndex, position
from quorate_store.lease_table import LeaseTable
from quorate_store.mvcc import Mvcc
from quorate_store.pacing import Pause, paced


@dataclass(frozen=True, slots=True)
class LoadedState:
    """What the files hold, and what is kept in memory beside them; all as of one applied index."""

    database: Database
    meta: Meta
    mvcc: Mvcc
    leases: LeaseTable


def load_state(database: Database, pause: Pause | None = None) -> LoadedState:
    """Without a `pause` at a start, when nothing else runs; with one in a thread, beside an event loop that must not
    wait for it. Raises SettingsError for files of another format, and InvariantViolation when rows and counters are not
    of one transaction."""
    with _without_collecting() if pause is None else nullcontext():
        return _load(database, pause)


def _load(database: Database, pause: Pause | None) -> LoadedState:
    meta = database.load_meta()
    histories = Histories()
    attached: dict[bytes, int] = {}
    newest_revision = 1
    with database.read() as txn:
        for main, sub, head in paced(database.heads_from(txn, 0, 0), pause):
            newest_revision = main
            histories.append(head.key, position(main, sub, deleted=head.version == 0))
            if head.lease:
                attached[head.key] = head.lease
            else:
                attached.pop(head.key, None)
        leases = LeaseTable(database, dict(paced(database.leases(txn), pause)))
    # The rows of the newest revision are never swept away before there is a newer one.
    if newest_revision != meta.revision:
        raise InvariantViolation(
            f"the rows end with revision {newest_revision}, and the state says that it is at {meta.revision}"
        )
    for key, lease in paced(attached.items(), pause):
        leases.attach(lease, key)
    index = KeyIndex(histories) if pause is None else KeyIndex.built_in_steps(histories, pause)
    return LoadedState(database, meta, Mvcc(database, meta, index), leases)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Nothing of what is built is garbage, and to look for some over and over, as it grows, takes a sixth as long as
    building it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
