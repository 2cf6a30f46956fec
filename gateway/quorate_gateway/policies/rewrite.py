"""Rewriting of the request target: what matched is replaced, the query stays as it came."""

from collections.abc import Callable

from quorate_core.errors import InvariantViolation

from quorate_gateway.documents.changes import NAME_IN_FORM, RouteRewrite
from quorate_gateway.documents.match import RouteMatch
from quorate_gateway.documents.strict import template_segments

Rewrite = Callable[[bytes], bytes]
"""From the target as matched (origin-form, RFC 9112 section 3.2.1) to the target that is sent upstream."""


def compile_rewrite(match: RouteMatch, rewrite: RouteRewrite | None) -> Rewrite | None:
    """None when there is nothing to replace in the target."""
    if rewrite is None:
        return None
    if rewrite.path is not None:
        return _compile_template(match.path_template or "", rewrite.path)
    if rewrite.path_prefix is None or rewrite.path_prefix == match.matched:
        return None
    return _compile_prefix(match.matched, rewrite.path_prefix)


def _compile_prefix(matched: str, replacement: str) -> Rewrite:
    """`/orders` by `/v2`: `/orders/7?full=1` becomes `/v2/7?full=1`; by `/`: `/7?full=1`."""
    skipped = 0 if matched == "/" else len(matched)
    start = b"" if replacement == "/" else replacement.encode("ascii")

    def rewrite(target: bytes) -> bytes:
        rewritten = start + target[skipped:]
        return rewritten if rewritten.startswith(b"/") else b"/" + rewritten

    return rewrite


def _compile_template(template: str, replacement: str) -> Rewrite:
    """`/orders/{id}/lines/{rest...}` by `/v2/lines/{rest}?`: each name is what stood there, escaped as it came."""
    segments = template_segments(template)
    depths = {segment.name: depth for depth, segment in enumerate(segments) if segment.name}
    names = NAME_IN_FORM.findall(replacement)
    if not depths or not depths.keys() >= set(names):
        raise InvariantViolation(f"{replacement!r} names what {template!r} has not, which validation refuses")
    form = b"%b".join(part.encode("ascii").replace(b"%", b"%%") for part in NAME_IN_FORM.split(replacement)[::2])
    places = tuple(depths[name] for name in names)
    cuts = len(segments)  # the last piece is a whole segment, or all that is left

    def rewrite(target: bytes) -> bytes:
        path, question, query = target.partition(b"?")
        found = path.split(b"/", cuts)[1:]
        return form % tuple([found[place] for place in places]) + question + query

    return rewrite
