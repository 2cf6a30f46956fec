"""`quorate routes`: what the gateway serves, asked of its admin API."""

import os
from pathlib import Path
from typing import Annotated

import typer

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import Target, find_gateway
from quorate_cli.exits import EXIT_NOT_FOUND
from quorate_cli.gateway_api import Explanation, GatewayRoutes
from quorate_cli.options import AsJson, TokenFile
from quorate_cli.tables import routes_table, show

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What the gateway serves.")

Admin = Annotated[
    str | None,
    typer.Option("--admin", help="The gateway's admin API: http://host:port.",
                 show_default="QUORATE_GATEWAY_ADMIN, else the gateway that runs here"),
]  # fmt: skip


@app.command("list")
def list_routes(as_json: AsJson = False, admin: Admin = None, token_file: TokenFile = None) -> None:
    """List the routes that are in force, in the order of their document."""
    with ControlPlane(_target(admin, token_file)) as gateway:
        found = gateway.read(GatewayRoutes, api_path("gateway", "routes"))
    if as_json:
        typer.echo(found.model_dump_json())
    elif found.root:
        show(routes_table(found.root))
    else:
        typer.echo("The gateway has no route. Publish some: quorate config edit default gateway routes.yaml")


@app.command()
def explain(
    path: Annotated[str, typer.Argument(help="Such as '/orders/1?full=1'.", metavar="PATH", show_default=False)],
    method: Annotated[str, typer.Option("--method", "-X", help="The request's method.")] = "GET",
    host: Annotated[str, typer.Option("--host", help="The request's Host.")] = "localhost",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="'name: value'; may be repeated.")] = None,
    as_json: AsJson = False, admin: Admin = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Say which route takes a request, and why.

    Exits with 3 when none does, when one of its policies would refuse it now, or when its service has no instance.
    """
    parameters: dict[str, str | int | list[str]] = {"path": path, "method": method, "host": host}
    with ControlPlane(_target(admin, token_file)) as gateway:
        found = gateway.read(Explanation, api_path("gateway", "explain"), {**parameters, "header": header or []})
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        for line in _told(found):
            typer.echo(line)
    if found.rule is not None:
        raise typer.Exit(EXIT_NOT_FOUND)


def _told(found: Explanation) -> list[str]:
    lines = [f"{item.route}: not taken, by its {item.refused_by}" for item in found.considered if item.refused_by]
    if found.route is not None:
        lines.append(f"{found.route}: taken; goes to {found.service} as {found.upstream_target}")
        lines += [f"  {met.policy}{'' if met.lets_through else ', refuses'}: {met.summary}" for met in found.policies]
        lines += [f"  {endpoint}" for endpoint in found.endpoints]
    if found.rule is not None:
        lines.append(f"The gateway itself answers: {found.rule}")
    return lines


def _target(admin: str | None, token_file: Path | None) -> Target:
    return find_gateway(admin, token_file, os.environ)
