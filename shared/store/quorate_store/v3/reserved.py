"""Who may write which keys by the open API.

Keys under `quorate/` belong to the platform's own parts. Everyone reads them here; they are written, deleted, or lost
with their lease, only at the wish of those who prove to be a part: a node without a store of its own, which passes on
what its apps write.
"""

import hmac

from quorate_core.errors import Forbidden
from quorate_core.plain_requests import Headers as HttpHeaders

from quorate_store.key_index import is_in_range
from quorate_store.model import RANGE_ALL, RESERVED_PREFIX, DeleteOp, Operation, PutOp, TxnOp, prefix_end
from quorate_store.v3.headers import PLATFORM_HEADER, header_value

_RESERVED_END = prefix_end(RESERVED_PREFIX)


class Guard:
    """Without a `platform_credential`, nobody is of the platform here."""

    def __init__(self, platform_credential: str = "") -> None:
        self._credential = platform_credential.encode()

    def is_platform(self, http: HttpHeaders) -> bool:
        return bool(self._credential) and hmac.compare_digest(header_value(http, PLATFORM_HEADER), self._credential)

    def require_open(self, op: Operation, http: HttpHeaders) -> None:
        """Raises Forbidden when `op` may write a reserved key, and is not asked for by the platform."""
        if may_write_reserved(op) and not self.is_platform(http):
            raise refusal()


def refusal() -> Forbidden:
    return Forbidden(
        f"keys under {RESERVED_PREFIX.decode()!r} belong to the platform, and this would write or delete some: use its "
        "own API for them, and for others name a range without them"
    )


def may_write_reserved(op: Operation) -> bool:
    """Whatever is there now, and whichever branches are taken."""
    if isinstance(op, PutOp):
        return op.key.startswith(RESERVED_PREFIX)
    if isinstance(op, DeleteOp):
        return is_in_range(op.key, RESERVED_PREFIX, _RESERVED_END) or _reaches_reserved(op)
    if isinstance(op, TxnOp):
        return any(may_write_reserved(one) for one in (*op.success, *op.failure))
    return False


def _reaches_reserved(op: DeleteOp) -> bool:
    """Whether a range that begins before the reserved keys ends among or behind them."""
    if not op.range_end or op.key >= RESERVED_PREFIX:
        return False
    return op.range_end == RANGE_ALL or op.range_end > RESERVED_PREFIX
