"""`quorate routes`: what the gateway serves, asked of its admin API; and what a document would do, asked of nobody."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import Target, find_gateway
from quorate_cli.exits import EXIT_NOT_FOUND, EXIT_OK, EXIT_REFUSED
from quorate_cli.gateway_api import Explanation, GatewayRoutes, GatewaySnapshot
from quorate_cli.options import AsJson, TokenFile
from quorate_cli.tables import printable, readable_duration, routes_table, show

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What the gateway serves, and what it would.")

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
        served = gateway.read(GatewaySnapshot, api_path("gateway", "snapshot"))
    if as_json:
        typer.echo(found.model_dump_json())
    elif found.root:
        show(routes_table(found.root))
    else:
        typer.echo("The gateway has no route. Publish some: quorate config edit default gateway routes.yaml")
    for line in _state_of(served):
        typer.echo(line, err=as_json)


def _state_of(served: GatewaySnapshot) -> list[str]:
    """How new what is served is, and what is not served."""
    lines = [f"Version {served.routes_version} of gateway/routes.yaml, store revision {served.revision}."]
    if not served.connected:
        age = readable_duration(served.stale_s)
        lines.append(f"The control plane is away: it confirmed this {age} ago. The gateway goes on with what it has.")
    if served.rejected is not None:
        what = f"version {served.rejected.version}" if served.rejected.version else "what was published last"
        lines.append(f"Not served: {what}: {printable(served.rejected.reason)}")
    return lines


@app.command()
def explain(
    path: Annotated[str, typer.Argument(help="Such as '/orders/1?full=1'.", metavar="PATH", show_default=False)],
    method: Annotated[str, typer.Option("--method", "-X", help="The request's method.")] = "GET",
    host: Annotated[str, typer.Option("--host", help="The request's Host.")] = "localhost",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="'name: value'; may be repeated.")] = None,
    client: Annotated[str, typer.Option("--client", help="The client's address, for what goes by it.")] = "",
    as_json: AsJson = False, admin: Admin = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Say which route takes a request, and why.

    Exits with 3 when none does, when one of its policies would refuse it now, or when its service has no instance.
    """
    parameters: dict[str, str | int | list[str]] = {"path": path, "method": method, "host": host, "client": client}
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
        where = found.service or "one of several"
        host = f", host {found.upstream_host}" if found.upstream_host else ""
        lines.append(f"{found.route}: taken; goes to {where} as {found.upstream_target}{host}")
        lines += [f"  {met.policy}{'' if met.lets_through else ', refuses'}: {met.summary}" for met in found.policies]
        if len(found.shares) > 1 or any(share.version for share in found.shares):
            for share in found.shares:
                lines.append(f"  {share.percent:g} % to {share.shown}")
                lines += [f"    {endpoint}" for endpoint in share.endpoints]
        else:
            lines += [f"  {endpoint}" for endpoint in found.endpoints]
    if found.rule is not None:
        lines.append(f"The gateway itself answers: {found.rule}")
    return [printable(line) for line in lines]


@app.command("test")
def check_file(
    file: Annotated[str, typer.Argument(help="A routes document; '-' reads stdin.", metavar="FILE",
                                        show_default=False)],
    expect: Annotated[list[str] | None, typer.Option(
        "--expect", "-e", help="'GET /orders/7 host=shop.example x-a=b -> orders', or '-> none'; may be repeated.",
    )] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Check a routes document without publishing it: as it would be checked, and by what it is expected to do.

    Expectations in the document (`expect:`) are part of it: one that does not hold makes it invalid, here as when it is
    published. Asks neither control plane nor gateway. Exits with 4 when the document is invalid or an expectation does
    not hold.
    """
    from quorate_cli.routes_check import check_document, parse_expectations  # noqa: PLC0415 - loads the gateway's code

    expectations = parse_expectations(expect or [])
    content = sys.stdin.read() if file == "-" else _read(file)
    checked = check_document(content, expectations)
    if as_json:
        typer.echo(json.dumps(checked.as_json()))
    else:
        for line in checked.told(file):
            typer.echo(line)
    raise typer.Exit(EXIT_OK if checked.is_good else EXIT_REFUSED)


@app.command()
def schema() -> None:
    """Print the JSON Schema of gateway/routes.yaml, for editors and for checks elsewhere."""
    from quorate_gateway.routes import routes_schema  # noqa: PLC0415 - not needed by the commands that ask a gateway

    typer.echo(json.dumps(routes_schema(), indent=2))


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{file}: no UTF-8, at byte {error.start}") from error


def _target(admin: str | None, token_file: Path | None) -> Target:
    return find_gateway(admin, token_file, os.environ)
