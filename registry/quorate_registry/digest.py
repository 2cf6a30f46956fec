"""A digest of what a node has applied, so that nodes can tell whether they show the same. Pure.

Theory of operation. Each key that is there contributes a keyed hash of itself, its `mod_revision` and its value; the
digest is the exclusive or of all contributions, so that it follows each change at once and no order matters. It is kept
for each of the last revisions that have changed something. Between two of them it is the same, so it is known for every
revision from `floor` to the newest, and two nodes that were asked at different moments are compared at the greatest
revision that both have. An equal digest at a revision means equal content there, but for one chance in 2^128.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable

from quorate_core.errors import InvariantViolation
from quorate_store.model import Event, EventKind, KeyValue

DIGEST_BYTES = 16
REVISIONS_KEPT = 16_384
"""How far one node may be ahead of another and still be compared: seconds of the fastest writing."""
_KEY = b"quorate registry digest 1"
"""Names the rule by which a contribution is made; nodes of another rule are not compared."""
RULE = 1


def contribution_of(kv: KeyValue) -> int:
    """A keyed hash of all that a key is."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, key=_KEY)
    digest.update(b"%d:%b%d:" % (len(kv.key), kv.key, kv.mod_revision))
    digest.update(kv.value)
    return int.from_bytes(digest.digest())


class Contributions:
    """Of all keys that are there; `total` is the digest of them."""

    def __init__(self) -> None:
        self.total = 0
        self._by_key: dict[int, int] = {}
        # By a hash of the key, since the keys would take most of the memory. Two keys that shared it would be taken for
        # one by all nodes in the same way.

    def put(self, kv: KeyValue) -> None:
        key, contribution = _key_hash(kv.key), contribution_of(kv)
        self.total ^= self._by_key.get(key, 0) ^ contribution
        self._by_key[key] = contribution

    def delete(self, key: bytes) -> None:
        self.total ^= self._by_key.pop(_key_hash(key), 0)


class RegistryDigest:
    """Begins with `load`; `take` follows each revision, in order."""

    def __init__(self, revisions_kept: int = REVISIONS_KEPT) -> None:
        self._revisions_kept = revisions_kept
        self._keys = Contributions()
        self._revisions: list[int] = []
        self._digests: list[int] = []
        self.floor = 0
        """The oldest revision that the digest is known at."""
        self.revision = 0

    @property
    def loaded(self) -> bool:
        return self.revision > 0

    def load(self, revision: int, keys: Contributions) -> None:
        """Begin anew with all there is at `revision`: what was before it is forgotten."""
        self._keys = keys
        self._revisions, self._digests = [revision], [keys.total]
        self.floor = self.revision = revision

    def take(self, revision: int, events: Iterable[Event] = ()) -> None:
        """Everything that has changed after the revision before it, up to `revision`, at which all of it has."""
        if not self.loaded:
            raise InvariantViolation("a digest is taken further before it was loaded")
        for event in events:
            if event.kind is EventKind.PUT:
                self._keys.put(event.kv)
            else:
                self._keys.delete(event.kv.key)
        self.revision = max(self.revision, revision)
        if self._digests[-1] == self._keys.total:
            return
        if self._revisions[-1] >= revision:
            self._digests[-1] = self._keys.total
            return
        self._revisions.append(revision)
        self._digests.append(self._keys.total)
        if len(self._revisions) >= 2 * self._revisions_kept:
            self._forget()

    def at(self, revision: int) -> str | None:
        """In hex; None for a revision that is not known, or not any more."""
        if not self.floor <= revision <= self.revision or not self.loaded:
            return None
        return f"{self._digests[bisect_right(self._revisions, revision) - 1]:032x}"

    def _forget(self) -> None:
        """Half of what is kept at once, so that it costs nothing for each."""
        gone = len(self._revisions) - self._revisions_kept
        del self._revisions[:gone], self._digests[:gone]
        self.floor = self._revisions[0]


def _key_hash(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=_KEY).digest())
