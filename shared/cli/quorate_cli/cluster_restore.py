"""`quorate cluster snapshot restore`: a new cluster with what a snapshot holds, of one member's folder at a time, or of
all nodes of the platform that is kept here."""

import datetime
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from quorate_core.errors import InvalidRequest
from quorate_node.restoring import Restoration, Restored
from quorate_node.restoring import restore as restore_folders
from quorate_node.settings import Members
from quorate_store.revival import BUMP_REVISIONS_DEFAULT, BUMP_REVISIONS_MAX

from quorate_cli.exits import EXIT_REFUSED, EXIT_USAGE
from quorate_cli.joining import as_shell_lines
from quorate_cli.layout import Layout, find_root, new_cluster_id
from quorate_cli.options import AsJson, Root
from quorate_cli.platform_restore import RestoredPlatform, restore_platform
from quorate_cli.progress import shown_progress


def restore(
    file: Annotated[Path, typer.Argument(help="A snapshot.", metavar="FILE", show_default=False)],
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="The member's folder, empty or not there yet.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The member's name.", metavar="NAME", show_default=False)] = None,
    members: Annotated[
        str | None, typer.Option(help="All of the new cluster: name=host:port,…", metavar="MEMBERS", show_default=False)
    ] = None,
    cluster_id: Annotated[
        str | None,
        typer.Option(help="Any word that was never used, the same for all members; a part is added to it.",
                     metavar="WORD", show_default="made, for a single member"),
    ] = None,
    bump_revision: Annotated[
        int, typer.Option(help="Begin so many revisions later, so that none that was seen comes again.", metavar="N",
                          min=0, max=BUMP_REVISIONS_MAX)
    ] = BUMP_REVISIONS_DEFAULT,
    platform: Annotated[bool, typer.Option("--platform", help="All nodes of the platform that is kept here.")] = False,
    root: Root = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a new cluster with what a snapshot holds: of one member, or with --platform of all nodes that are kept here.

    Each member of the new cluster restores the same FILE with the same --members, --cluster-id and --bump-revision, on
    its own machine. No member of the old cluster can join it. Leases have their whole time again. A folder with data is
    refused; with --platform the nodes' present data is moved aside, while nothing of it runs. Examples:

    \b
        quorate cluster snapshot restore FILE --platform
        quorate cluster snapshot restore FILE --data-dir /data --name node-1 \\
            --members node-1=10.0.0.1:7501,node-2=10.0.0.2:7501,node-3=10.0.0.3:7501 --cluster-id shop-2
    """
    if platform:
        _require_none(("--data-dir", data_dir), ("--name", name), ("--members", members), ("--cluster-id", cluster_id))
        _restore_platform(file, root, bump_revision, yes=yes, as_json=as_json)
        return
    if data_dir is None or not name or not members:
        raise InvalidRequest("a member's folder needs --data-dir, --name and --members; for all nodes here: --platform")
    found = _members(members)
    wanted = Restoration(file, found, cluster_id or _made_cluster_id(found), bump_revision)
    with shown_progress("Reading") as on_progress:
        restored = restore_folders(wanted, {name: data_dir}, on_progress)
    if as_json:
        typer.echo(json.dumps(_fields(restored)))
    else:
        _tell(restored, wanted, name, data_dir)


def _restore_platform(file: Path, root: Path | None, bump_revision: int, *, yes: bool, as_json: bool) -> None:
    layout = Layout(find_root(root))

    def confirm(question: str) -> None:
        if yes:
            return
        if not sys.stdin.isatty():
            typer.echo("quorate: this replaces the nodes' data; without a terminal to ask at, say --yes", err=True)
            raise typer.Exit(EXIT_USAGE)
        if not typer.confirm(question):
            typer.echo("Nothing was changed.")
            raise typer.Exit(EXIT_REFUSED)

    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    found = restore_platform(layout, file, bump_revision, stamp, confirm, lambda: shown_progress("Reading"))
    if as_json:
        typer.echo(json.dumps({**_fields(found.restored), "nodes": list(found.nodes)}))
    else:
        _tell_of_platform(found, layout)


def _require_none(*given: tuple[str, object]) -> None:
    flags = [flag for flag, value in given if value is not None]
    if flags:
        raise InvalidRequest(f"{', '.join(flags)}: of no use with --platform, which knows its nodes; leave it out")


def _members(text: str) -> Members:
    try:
        return Members.parse(text)
    except ValueError as error:
        raise InvalidRequest(f"--members: {error}") from error


def _made_cluster_id(members: Members) -> str:
    """For a single member. NB: made for each, the members of a cluster would each have another one."""
    if len(members) == 1:
        return new_cluster_id()
    raise InvalidRequest(
        "--cluster-id: missing. It keeps members of other clusters out, and must be the same for all members of this "
        f"one, and new. For example: --cluster-id {new_cluster_id()}"
    )


def _fields(restored: Restored) -> dict[str, object]:
    header = restored.contents.header
    return {
        "cluster_id": restored.cluster_id, "revision": restored.revision, "keys": restored.contents.keys,
        "leases": restored.contents.leases, "from_cluster_id": header.cluster_id, "from_revision": header.revision,
        "taken_at": header.taken_at,
    }  # fmt: skip


def _what(restored: Restored) -> str:
    contents = restored.contents
    return (
        f"{contents.keys:,} keys and {contents.leases:,} leases of {contents.header.cluster_id}, as they were at "
        f"{contents.header.taken_at} (revision {contents.header.revision}). The new cluster begins with revision "
        f"{restored.revision}."
    )


def _tell(restored: Restored, wanted: Restoration, name: str, data_dir: Path) -> None:
    typer.echo(f"{data_dir} is that of {name} now, with {_what(restored)}")
    words = [
        "python", "-m", "quorate_node", "--cluster-state", "existing", "--name", name, "--data-dir", str(data_dir),
        "--http", "HOST:PORT", "--peer", str(wanted.members[name]), "--members", str(wanted.members),
        "--cluster-id", restored.cluster_id, "--cluster-secret-file", "CLUSTER_SECRET_FILE",
    ]  # fmt: skip
    typer.echo(f"\nStart it with this; what is in capitals is yours to fill in:\n\n  {as_shell_lines(words)}\n")
    others = [other for other in wanted.members if other != name]
    if others:
        bump = "" if wanted.bump_revisions == BUMP_REVISIONS_DEFAULT else f" --bump-revision {wanted.bump_revisions}"
        typer.echo(
            f"Before that, do the same with the same file for {', '.join(others)}, on their machines:\n\n"
            f"  quorate cluster snapshot restore FILE --data-dir DIR --name {others[0]} \\\n"
            f"      --members {wanted.members} \\\n"
            f"      --cluster-id {wanted.cluster_id}{bump}\n\n"
            f"All of them come to the id {restored.cluster_id}, or were not restored alike, and refuse each other."
        )


def _tell_of_platform(found: RestoredPlatform, layout: Layout) -> None:
    typer.echo(f"{', '.join(found.nodes)} have {_what(found.restored)}")
    if found.moved_to is not None:
        typer.echo(f"What they held before is in {found.moved_to}; delete it when it is of no use any more.")
    if found.left_out:
        typer.echo(f"Not in the new cluster: {', '.join(found.left_out)}. Add members anew: quorate cluster add")
    typer.echo("The services' databases were left as they are. Start it with: quorate up (or: make up)")
