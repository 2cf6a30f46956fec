"""`quorate changes`: what has changed, when, and by whom."""

import contextlib
import time
from collections.abc import Sequence
from typing import Annotated

import typer
from quorate_core.errors import QuorateError, Retry
from quorate_sdk.wire import Change, ChangeList

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import find_target
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.tables import plain_table, printable, show

FOLLOW_INTERVAL_S = 1.0
READ_S_MAX = 15.0
"""A node may read all of its history for one answer."""
LIMIT_MAX = 10_000

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def changes(
    since: Annotated[
        str, typer.Option("--since", help="How long ago, such as 10m; or a time, or a revision.", metavar="WHEN")
    ] = "10m",
    until: Annotated[str, typer.Option("--until", help="The same.", metavar="WHEN", show_default="now")] = "",
    namespace: Annotated[str | None, typer.Option("--namespace", "-N", help="Only of this one.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only these: instance, service, config or route.")] = None,
    name: Annotated[str | None, typer.Option(help="Only this service, instance (as service/id) or document.")] = None,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1, max=LIMIT_MAX)] = 1_000,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Show what has changed: instances, services' settings, documents and routes, oldest first.

    With --json: one object; with --follow too, one change a line.
    """
    wanted = _Wanted(namespace, kind, name)
    with (
        ControlPlane(find_target(endpoints, token_file), READ_S_MAX, READ_S_MAX) as control_plane,
        contextlib.suppress(KeyboardInterrupt),
    ):
        found = _read(control_plane, since, until, limit)
        if follow:
            _follow(control_plane, found, wanted, as_json)
        else:
            _show(found.model_copy(update={"changes": wanted.of(found.changes)}), as_json)


class _Wanted:
    def __init__(self, namespace: str | None, kind: str | None, name: str | None) -> None:
        self._namespace = namespace
        self._kind = kind
        self._name = name

    def of(self, changes: Sequence[Change]) -> list[Change]:
        return [
            change
            for change in changes
            if self._namespace in (None, change.namespace)
            and self._kind in (None, change.kind)
            and (self._name is None or change.name == self._name or change.name.startswith(self._name + "/"))
        ]


def _read(control_plane: ControlPlane, since: str, until: str, limit: int) -> ChangeList:
    return control_plane.read(ChangeList, api_path("changes"), {"from": since, "to": until, "limit": str(limit)})


def _follow(control_plane: ControlPlane, found: ChangeList, wanted: _Wanted, as_json: bool) -> None:
    while True:
        for change in wanted.of(found.changes):
            typer.echo(change.model_dump_json() if as_json else printable(_line(change)))
        after = found.to_revision + 1
        found = _next(control_plane, after)
        if not found.complete:
            typer.echo(f"There were more changes after revision {after} than could be read.", err=True)


def _next(control_plane: ControlPlane, after: int) -> ChangeList:
    """What comes from revision `after` on, once the control plane answers."""
    while True:
        time.sleep(FOLLOW_INTERVAL_S)
        try:
            return _read(control_plane, str(after), "", LIMIT_MAX)
        except QuorateError as error:
            if error.kind.retry is Retry.NEVER:
                raise


def _show(found: ChangeList, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json())
        return
    if found.changes:
        columns = ("revision", "when", "kind", "namespace", "name", "what", "by", "from -> to")
        show(plain_table(columns, [_row(change) for change in found.changes], right=("revision",)))
    else:
        typer.echo("Nothing has changed.")
    if not found.complete:
        typer.echo(f"There may be more: this is what is known from revision {found.from_revision} on.", err=True)


def _row(change: Change) -> list[str]:
    return [
        str(change.revision), change.at or "-", change.kind, change.namespace, change.name, change.what,
        change.by or "-", _details(change),
    ]  # fmt: skip


def _line(change: Change) -> str:
    by = f" by {change.by}" if change.by else ""
    when = change.at or f"revision {change.revision}"
    return f"{when} {change.kind} {change.namespace}/{change.name} {change.what}{by} {_details(change)}".rstrip()


def _details(change: Change) -> str:
    told = []
    for field, values in change.details.items():
        before, since = (*values, "", "")[:2]
        told.append(f"{field}: {before} -> {since}" if before else f"{field}: {since}")
    return ", ".join(told)
