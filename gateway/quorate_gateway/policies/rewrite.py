"""Rewriting of the request target: the part of the path that matched is replaced, the rest stays as it came."""

from collections.abc import Callable

Rewrite = Callable[[bytes], bytes]
"""From the target as matched (origin-form, RFC 9112 section 3.2.1) to the target that is sent upstream."""


def compile_rewrite(matched: str, replacement: str | None) -> Rewrite | None:
    """Replace the `matched` path or path prefix by `replacement`; None when there is nothing to replace.

    `/orders` by `/v2`: `/orders/7?full=1` becomes `/v2/7?full=1`; by `/`: `/7?full=1`.
    """
    if replacement is None or replacement == matched:
        return None
    skipped = 0 if matched == "/" else len(matched)
    start = b"" if replacement == "/" else replacement.encode("ascii")

    def rewrite(target: bytes) -> bytes:
        rest = target[skipped:]
        rewritten = start + rest
        return rewritten if rewritten.startswith(b"/") else b"/" + rewritten

    return rewrite
