"""`quorate cluster`: the control plane's own state."""

import typer
from quorate_sdk.wire import ClusterStatus

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import find_target
from quorate_cli.exits import EXIT_FAILED
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.tables import cluster_table, show

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The control plane's own state.")


@app.callback()
def cluster() -> None:
    """The control plane's own state."""


@app.command()
def status(as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None) -> None:
    """Show every node: its role, how far it is, and who it is connected to.

    Exits with 1 when there is no leader, so that writes wait.
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = control_plane.read(ClusterStatus, api_path("cluster", "status"))
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        show(cluster_table(found))
    if not found.leader:
        typer.echo("There is no leader: reads of the last state go on, writes wait for a majority of nodes.", err=True)
        raise typer.Exit(EXIT_FAILED)
