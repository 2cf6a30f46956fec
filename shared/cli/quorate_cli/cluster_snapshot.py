"""`quorate cluster snapshot`: the whole store as one file, and a new cluster from it."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from quorate_core.errors import NotFound, NotProposed, Unavailable
from quorate_sdk.wire import MemberList
from quorate_store.backup import BackupHeader
from quorate_store.revival import Contents, opened_backup

from quorate_cli.backup_files import copy_backup, require_new, save_backup
from quorate_cli.client import ControlPlane, api_path
from quorate_cli.cluster_restore import restore
from quorate_cli.endpoints import Target, find_target
from quorate_cli.exits import EXIT_USAGE
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.progress import shown_progress
from quorate_cli.tables import plain_table, readable_bytes, show

DEADLINE_S = 20.0
"""For a node to begin to send: it waits for its leader first."""
SILENCE_S = 120.0
"""Before the first byte the state is copied and summed up: a second for each 500 MB, or a minute on a slow disk."""
STDOUT = Path("-")

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

BackupFile = Annotated[Path, typer.Argument(help="Such as backup.snapshot.", metavar="FILE", show_default=False)]


@app.callback()
def snapshot() -> None:
    """The whole store as one file, and a new cluster from it.

    \b
        quorate cluster snapshot save backup.snapshot        while everything runs
        quorate cluster snapshot status backup.snapshot      what is in it
        quorate cluster snapshot restore backup.snapshot …   a new cluster with what is in it
    """


app.command()(restore)


@app.command()
def save(
    file: Annotated[Path, typer.Argument(help="Such as backup.snapshot; - is stdout.", metavar="FILE")],
    node: Annotated[
        str | None, typer.Option("--node", help="Of this member.", metavar="NAME", show_default="any")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Ask no leader: take what the member has; the last writes may be missing."),
    ] = False,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Save what the store holds, of one member, while everything goes on.

    It has all that was acknowledged before. FILE is checked, and is there only when it is whole. It holds all that the
    platform knows: keep it as you keep the data. The services' databases are not in it. Example:

    \b
        quorate cluster snapshot save backup-2026-07-01.snapshot
    """
    if file == STDOUT and sys.stdout.isatty():
        typer.echo("quorate: a snapshot is nothing for a terminal; name a file, or lead stdout into one", err=True)
        raise typer.Exit(EXIT_USAGE)
    if file != STDOUT:
        require_new(file, force=force)
    target = find_target(endpoints, token_file)
    with ControlPlane(_node_target(target, node) if node else target, DEADLINE_S) as control_plane:
        header = _save(control_plane, file, stale=stale, force=force)
    if as_json:
        typer.echo(json.dumps(header_fields(header)), err=file == STDOUT)
    else:
        _tell_of_saved(header, file)


def _save(control_plane: ControlPlane, file: Path, *, stale: bool, force: bool) -> BackupHeader:
    path, parameters = api_path("cluster", "snapshot"), {"stale": "true"} if stale else {}
    try:
        with (
            shown_progress("Saving") as on_progress,
            control_plane.download(path, parameters, SILENCE_S) as pieces,
        ):
            if file == STDOUT:
                header = copy_backup(pieces, sys.stdout.buffer, on_progress)
                sys.stdout.buffer.flush()
                return header
            return save_backup(pieces, file, force=force, on_progress=on_progress)
    except NotProposed as error:
        raise NotProposed(
            error.detail, advice="There is no leader to ask what was acknowledged. To take what one member has: --stale"
        ) from error


def _node_target(target: Target, name: str) -> Target:
    """The one member, wherever the cluster says that it serves HTTP. Raises NotFound, and Unavailable when it is not
    up."""
    with ControlPlane(target) as control_plane:
        found = control_plane.read(MemberList, api_path("cluster", "members"))
    member = found.find(name)
    if member is None:
        raise NotFound(f"{name} is no member; there are {', '.join(each.name for each in found.members)}")
    if not member.url:
        raise Unavailable(f"{name} is not up")
    return Target((member.url,), target.token, what=f"node {name}")


def _tell_of_saved(header: BackupHeader, file: Path) -> None:
    name = "stdout" if file == STDOUT else str(file)
    typer.echo(
        f"Saved {name}: {readable_bytes(header.size_bytes)}, revision {header.revision}, of {header.member}, "
        f"{header.taken_at}.",
        err=file == STDOUT,
    )
    if not header.is_complete:
        typer.echo("It was taken without a leader: what was acknowledged last may be missing.", err=True)


@app.command()
def status(file: BackupFile, as_json: AsJson = False) -> None:
    """Check a snapshot to its last byte, and show what is in it.

    It is unpacked for that, into the folder for temporary files (TMPDIR). Exits with 4 when it is damaged. Example:

    \b
        quorate cluster snapshot status backup.snapshot
    """
    with (
        tempfile.TemporaryDirectory(prefix="quorate-") as scratch,
        shown_progress("Checking") as on_progress,
        opened_backup(file, Path(scratch), on_progress) as backup,
    ):
        contents = backup.contents()
    if as_json:
        typer.echo(json.dumps(contents_fields(contents)))
    else:
        show(plain_table(("snapshot", str(file)), _rows(contents)))


def header_fields(header: BackupHeader) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(header)
    return fields


def contents_fields(contents: Contents) -> dict[str, object]:
    own = {
        "keys": contents.keys, "leases": contents.leases, "hash": contents.hash.hash,
        "store_bytes": contents.store_bytes, "quota_bytes": contents.quota_bytes,
    }  # fmt: skip
    return {**header_fields(contents.header), **own}


def _rows(contents: Contents) -> list[tuple[str, str]]:
    header = contents.header
    members = [f"{each.name} {each.address}{' (learner)' if each.is_learner else ''}" for each in header.members]
    filled = f"{readable_bytes(contents.store_bytes)} of a quota of {readable_bytes(contents.quota_bytes)}"
    complete = "everything acknowledged" if header.is_complete else "taken without a leader: the last may be missing"
    return [
        ("checksum", "as it was written"),
        ("taken", f"{header.taken_at}, of {header.member}, by release {header.written_by}"),
        ("holds", complete),
        ("cluster", header.cluster_id),
        ("members then", ", ".join(members)),
        ("revision", f"{header.revision}, compacted up to {header.compact_revision}"),
        ("log", f"up to entry {header.index} of term {header.term}"),
        ("keys", f"{contents.keys:,}"),
        ("leases", f"{contents.leases:,}"),
        ("hash", f"{contents.hash.hash} (of what is not compacted away, as quorate cluster hash tells it)"),
        ("size", f"{readable_bytes(header.size_bytes)}; {filled}"),
    ]  # fmt: skip
