"""`quorate cluster`: the control plane's own state, and who is a member of it."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel
from quorate_core.errors import Conflict, DeadlineExceeded, InvalidRequest, NotFound, OutcomeUnknown
from quorate_core.settings import HostPort
from quorate_sdk.wire import AddMember, ClusterMember, ClusterStatus, MemberList, Transfer, Transferred

from quorate_cli import keys, keys_watch
from quorate_cli.client import ControlPlane, api_path
from quorate_cli.cluster_compact import compact
from quorate_cli.cluster_hash import hash_members
from quorate_cli.endpoints import find_target
from quorate_cli.exits import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE
from quorate_cli.joining import Place, as_shell_lines, join_command, local_layout
from quorate_cli.layout import Layout, write_atomically
from quorate_cli.lazy_commands import lazily
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.parts import PartKind, removed_mark
from quorate_cli.run_state import read_run_state
from quorate_cli.tables import cluster_table, external_stores_table, members_table, printable, show

POLL_INTERVAL_S = 0.5
REMOVAL_LOOKS_MAX = 10
CAUGHT_UP_LAG_ENTRIES_MAX = 100
"""`add --wait` is content with this: under writes, the last few entries are always on their way."""
_JSON = {"content-type": "application/json"}
_NO_LEADER = "There is no leader: reads of the last state go on, writes wait for a majority of nodes."

app = typer.Typer(
    cls=lazily({"snapshot": "quorate_cli.cluster_snapshot"}), add_completion=False, no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip

ModelT = TypeVar("ModelT", bound=BaseModel)
MemberArgument = Annotated[str, typer.Argument(help="Such as node-4.", metavar="NAME", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Wait so many seconds at most.", min=0.1)]


app.command()(keys.get)
app.command()(keys.put)
app.command("del")(keys.delete)
app.command()(keys_watch.watch)
app.command()(compact)
app.command("hash")(hash_members)


@app.callback()
def cluster() -> None:
    """The control plane's own state, who is a member of it, and the keys of its store.

    A member is replaced by four steps, while everything goes on:

    \b
        quorate cluster add node-4 10.0.0.4:7501    prints how to start node-4; start it
        quorate cluster promote node-4              waits until it has caught up
        quorate cluster remove node-2
        quorate cluster members
    """


@app.command()
def status(as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None) -> None:
    """Show every node: its role, how far it is, and who it is connected to. Of nodes that stand on an external store,
    also where that is, and which of its endpoints answer.

    Exits with 1 when there is no leader, so that writes wait.
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = control_plane.read(ClusterStatus, api_path("cluster", "status"))
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        show(cluster_table(found))
        if any(report.status and report.status.store for report in found.nodes):
            show(external_stores_table(found))
        for alarm in alarms(found):
            typer.secho(printable(alarm), err=True, fg=typer.colors.RED)
    _require_leader(found.leader)


def alarms(found: ClusterStatus) -> list[str]:
    """What nodes want to be known, each sentence once, with those that say it."""
    nodes: dict[str, list[str]] = {}
    for report in found.nodes:
        for alarm in report.status.alarms if report.status else ():
            nodes.setdefault(alarm, []).append(report.name)
    return [f"Alarm: {alarm} (says {', '.join(names)})" for alarm, names in nodes.items()]


@app.command()
def members(as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None) -> None:
    """Show who is a member, who can be reached, and how many entries each lacks, as the leader sees it.

    Exits with 1 when there is no leader to ask; then it is what one node knew last.
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = _members(control_plane)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        show(members_table(found))
    _require_leader(found.leader)


@app.command()
def add(
    name: MemberArgument,
    address: Annotated[
        str, typer.Argument(help="Where the others will reach it.", metavar="HOST:PORT", show_default=False)
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it runs and has caught up.")] = False,
    timeout_s: Timeout = 300.0,
    http: Annotated[str | None, typer.Option(help="Where it is to serve HTTP: for the command line.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Its data folder: for the command line.")] = None,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Add a member, and print the command line that starts it.

    It begins as a learner: it gets everything, and has no vote until it is promoted. A name that was removed once
    cannot be used again. Example:

    \b
        quorate cluster add node-4 127.0.0.1:7504
    """
    place = Place(_address(address), local_layout(endpoints), _address(http) if http else None, data_dir)
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        body = AddMember.model_construct(name=name, address=str(place.peer))
        found = _change(control_plane, MemberList, "POST", body, "members")
        command = join_command(name, place, found)
        if as_json:
            typer.echo(_with_command(found, command))
        else:
            _tell_how_to_start(name, command, has_blanks=place.layout is None)
        if wait:
            _until_caught_up(control_plane, name, timeout_s)


@app.command()
def promote(
    name: MemberArgument,
    timeout_s: Timeout = 60.0,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Give a learner a vote, as soon as it has caught up.

    Exits with 5 when it has not within the time limit; it then still is a learner. Example:

    \b
        quorate cluster promote node-4 --timeout 600
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = _members(control_plane)
        if _require_member(found, name).is_voter:
            typer.echo(f"{name} is a voter already.", err=as_json)
        else:
            found = _promote_when_caught_up(control_plane, name, timeout_s)
            typer.echo(f"{name} is a voter now.", err=as_json)
    if as_json:
        typer.echo(found.model_dump_json())


@app.command()
def remove(
    name: MemberArgument,
    yes: Yes = False,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Remove a member for good: its process ends, its data can be deleted, its name is never used again.

    A leader hands over first. Refused while what is left and alive would be no majority. Example:

    \b
        quorate cluster remove node-2
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = _members(control_plane)
        member = _require_member(found, name)
        for warning in _warnings(found, member):
            typer.echo(f"Warning: {warning}", err=True)
        if not yes:
            _ask(name)
        found = _remove(control_plane, name)
    if not member.is_reachable:
        _tell_supervisor(name, local_layout(endpoints))
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        when = "ends by itself" if member.is_reachable else "is told so, should it come back,"
        typer.echo(f"{name} was removed: its process {when} with exit status 78, and its data folder can be deleted.")


@app.command()
def transfer(
    name: Annotated[str, typer.Argument(help="Who is to lead.", metavar="[NAME]", show_default="who lacks least")] = "",
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Let another member lead; nothing is lost, and writes wait for some milliseconds. Example:

    \b
        quorate cluster transfer node-3
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = _change(control_plane, Transferred, "POST", Transfer.model_construct(to=name), "transfer")
    typer.echo(found.model_dump_json() if as_json else f"{found.leader} leads now.")


def _members(control_plane: ControlPlane) -> MemberList:
    return control_plane.read(MemberList, api_path("cluster", "members"))


def _change(
    control_plane: ControlPlane, model: type[ModelT], method: str, body: BaseModel | None, *path: str
) -> ModelT:
    content = None if body is None else body.model_dump_json().encode()
    headers = None if body is None else _JSON
    return control_plane.write(model, method, api_path("cluster", *path), headers=headers, content=content)


def _remove(control_plane: ControlPlane, name: str) -> MemberList:
    """An answer that was lost is looked into here: that `name` is gone for good can be read."""
    try:
        return _change(control_plane, MemberList, "DELETE", None, "members", name)
    except OutcomeUnknown:
        # NB: the node that is asked may not have heard of it yet, least of all if it is the one that was removed.
        for _ in range(REMOVAL_LOOKS_MAX):
            found = _members(control_plane)
            if name in found.removed:
                return found
            time.sleep(POLL_INTERVAL_S)
        raise


def _tell_supervisor(name: str, layout: Layout | None) -> None:
    """A node that has lost its data does not start, so it never hears from the others that it was removed. If it is one
    of the platform that runs here, it is marked, as it would mark itself, so that its supervisor lets it be."""
    state = None if layout is None else read_run_state(layout)
    if layout is None or state is None or name not in state.parts or state.parts[name].kind != PartKind.NODE:
        return
    mark = removed_mark(layout, name)
    try:
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(mark, f"{name} was removed from the cluster. {mark.parent} can be deleted\n")
    except OSError as error:
        typer.echo(f"Warning: {mark} cannot be written ({error.strerror}): {name} is started again in vain", err=True)


def _address(text: str) -> HostPort:
    try:
        return HostPort.parse(text)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _require_leader(leader: str) -> None:
    if not leader:
        typer.echo(_NO_LEADER, err=True)
        raise typer.Exit(EXIT_FAILED)


def _require_member(found: MemberList, name: str) -> ClusterMember:
    member = found.find(name)
    if member is not None:
        return member
    if name in found.removed:
        raise NotFound(f"{name} was removed from the cluster, and its name cannot be used again")
    raise NotFound(f"{name} is no member; there are {', '.join(each.name for each in found.members)}")


def _tell_how_to_start(name: str, command: list[str], has_blanks: bool) -> None:
    blanks = "; what is in capitals is yours to fill in" if has_blanks else ""
    typer.echo(f"{name} is a learner now. Start it with this{blanks}:\n\n  {as_shell_lines(command)}\n")
    typer.echo(f"Then give it a vote: quorate cluster promote {name}")
    typer.echo("From its second start on, say --cluster-state existing: then it notices when its data is lost.")


def _with_command(found: MemberList, command: list[str]) -> str:
    return _Added(**found.model_dump(), command=command).model_dump_json()


class _Added(MemberList):
    """What `add --json` prints: the members, and the words of the new one's command line."""

    command: list[str]


def _until_caught_up(control_plane: ControlPlane, name: str, timeout_s: float) -> None:
    def has_caught_up() -> str | None:
        member = _require_member(_members(control_plane), name)
        lag = member.lag_entries
        if member.is_reachable and lag is not None and lag <= CAUGHT_UP_LAG_ENTRIES_MAX:
            return None
        return _how_far(member)

    _poll(name, timeout_s, has_caught_up)
    typer.echo(f"{name} runs and has caught up.", err=True)


def _promote_when_caught_up(control_plane: ControlPlane, name: str, timeout_s: float) -> MemberList:
    promoted: list[MemberList] = []

    def is_promoted() -> str | None:
        try:
            promoted.append(_change(control_plane, MemberList, "POST", None, "members", name, "promote"))
        except Conflict as error:
            if "lag_entries" not in error.extensions:
                raise
            return _how_far(_require_member(_members(control_plane), name))
        return None

    _poll(name, timeout_s, is_promoted)
    return promoted[0]


def _poll(name: str, timeout_s: float, why_not_yet: Callable[[], str | None]) -> None:
    """Ask again and again, and show each answer that is new, until there is none. Raises DeadlineExceeded."""
    deadline_s = time.monotonic() + timeout_s
    shown = ""
    while (reason := why_not_yet()) is not None:
        if reason != shown:
            typer.echo(reason, err=True)
            shown = reason
        if time.monotonic() + POLL_INTERVAL_S > deadline_s:
            raise DeadlineExceeded(
                f"not within {timeout_s:g} s: {reason}",
                advice=f"{name} still is a learner. Look at its log, and at: quorate cluster members",
            )
        time.sleep(POLL_INTERVAL_S)


def _how_far(member: ClusterMember) -> str:
    if not member.is_reachable:
        return f"{member.name} cannot be reached yet: is it started?"
    if not member.match_index:
        return f"{member.name} takes over a snapshot, or is about to"
    return f"{member.name} lacks {member.lag_entries:,} entries"


def _warnings(found: MemberList, member: ClusterMember) -> list[str]:
    """What whoever removes `member` should know before."""
    if not member.is_voter:
        return []
    if not found.leader:
        return ["there is no leader, so that nothing can be changed now"]
    warnings = []
    if member.is_leader:
        warnings.append(f"{member.name} leads; the leadership goes to another voter first")
    spare = found.spare_voters(without=member.name)
    silent = [each.name for each in found.members if each.is_voter and not each.is_reachable and each is not member]
    gone = f" ({', '.join(silent)} cannot be reached)" if silent else ""
    if spare < 0:
        warnings.append(f"without {member.name} there is no majority{gone}, and it will be refused")
    elif spare == 0:
        warnings.append(f"without {member.name} every voter that is left is needed{gone}: one more down, and it stops")
    return warnings


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        typer.echo("quorate: a removal is for good; without a terminal to ask at, say --yes", err=True)
        raise typer.Exit(EXIT_USAGE)
    if not typer.confirm(f"Remove {name} from the cluster for good?"):
        typer.echo("Nothing was changed.")
        raise typer.Exit(EXIT_REFUSED)
