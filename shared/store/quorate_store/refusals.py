"""Why a request to the store is refused, where it matters to a program and not only to its reader: etcd has a text of
its own for each of these, which clients compare."""

from quorate_core.errors import Conflict, InvalidRequest

RETRY_HEADER = "quorate-retry"
"""The HTTP header of an error that says what its code and text do not: whether a write may have been done
(`quorate_core.errors.Retry`). Nodes that stand on this one go by it."""


class KeyNotProvided(InvalidRequest):
    """An operation on the empty key."""


class KeyNotFound(InvalidRequest):
    """A put that keeps the value or the lease of a key that is not there; an operation that says nothing."""


class ValueProvided(InvalidRequest):
    """A put that keeps the value, and has one."""


class LeaseProvided(InvalidRequest):
    """A put that keeps the lease, and has one."""


class TooManyOperations(InvalidRequest):
    """Over TXN_OPERATIONS_MAX in a transaction."""


class DuplicateKey(InvalidRequest):
    """A transaction that writes a key twice."""


class LeaseExists(Conflict):
    """A grant with an id that is taken."""


class LeaseTtlTooLarge(InvalidRequest):
    """A grant for longer than LEASE_TTL_S_MAX."""
