"""`quorate cluster compact`: forget old revisions, so that what was deleted and overwritten takes no room any more."""

import base64
import json
from typing import Annotated

import typer
from quorate_core.errors import Compacted, InvalidRequest, QuorateError
from quorate_sdk.wire import ClusterStatus, NodeStatus

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import find_target
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.tables import readable_bytes

_ANY_KEY = base64.b64encode(b"quorate").decode()


def compact(
    revision: Annotated[
        int | None, typer.Argument(help="The oldest that is kept.", metavar="[REVISION]", min=1, show_default="now's")
    ] = None,
    keep: Annotated[
        int | None, typer.Option("--keep", help="Keep the newest N revisions.", metavar="N", min=0, show_default="0")
    ] = None,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Forget what keys were before a revision; what they are now stays.

    What was deleted or overwritten counts against the quota until it is forgotten. Watchers that are further behind
    begin anew by themselves. The store forgets by itself what is more than 100,000 revisions old. Examples:

    \b
        quorate cluster compact
        quorate cluster compact --keep 10000
    """
    if revision is not None and keep is not None:
        raise InvalidRequest("REVISION and --keep are both given; one of them is enough")
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        before = _most_advanced(control_plane)
        present = _present_revision(control_plane)
        wanted = present - (keep or 0) if revision is None else revision
        is_done = wanted >= 1 and _compact(control_plane, wanted)
        after = _most_advanced(control_plane)
    if as_json:
        typer.echo(json.dumps(_fields(wanted if is_done else None, present, before, after)))
        return
    if is_done:
        typer.echo(f"Compacted: revisions before {wanted} are forgotten; now is {present}.")
    elif wanted < 1:
        typer.echo(f"Nothing was compacted: there are no more than {present} revisions.")
    else:
        typer.echo(f"Nothing was compacted: revisions before {wanted} were forgotten already.")
    typer.echo(_how_full(before, after))


def _compact(control_plane: ControlPlane, revision: int) -> bool:
    """False when nothing was left to forget. It is sent again when an answer was lost, and nothing is left then."""
    try:
        control_plane.call_json("/v3/kv/compaction", {"revision": str(revision)})
    except Compacted:
        return False
    return True


def _present_revision(control_plane: ControlPlane) -> int:
    """Linearizable."""
    answer = control_plane.call_json("/v3/kv/range", {"key": _ANY_KEY, "count_only": True})
    try:
        return int(answer["header"]["revision"])
    except (KeyError, TypeError, ValueError) as error:
        raise QuorateError(f"the store's answer names no revision: {answer}") from error


def _most_advanced(control_plane: ControlPlane) -> NodeStatus | None:
    """What the node says that has applied most; None when none says anything."""
    nodes = control_plane.read(ClusterStatus, api_path("cluster", "status")).nodes
    found = [report.status for report in nodes if report.status is not None]
    return max(found, key=lambda node: node.applied_index, default=None)


def _how_full(before: NodeStatus | None, after: NodeStatus | None) -> str:
    if before is None or after is None:
        return "How large the store is, no node says."
    of = f" of a quota of {readable_bytes(after.quota_bytes)}" if after.quota_bytes else ""
    was = "" if before.store_bytes == after.store_bytes else f"; it was {readable_bytes(before.store_bytes)}"
    return f"The store takes {readable_bytes(after.store_bytes)}{of}{was}."


def _fields(
    compacted: int | None, present: int, before: NodeStatus | None, after: NodeStatus | None
) -> dict[str, int | None]:
    return {
        "compacted_revision": compacted,
        "revision": present,
        "store_bytes_before": None if before is None else before.store_bytes,
        "store_bytes": None if after is None else after.store_bytes,
        "quota_bytes": None if after is None else after.quota_bytes,
    }
