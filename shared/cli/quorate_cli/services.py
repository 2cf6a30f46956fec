"""`quorate services`: what is registered."""

from typing import Annotated

import typer
from quorate_sdk.wire import DEFAULT_NAMESPACE, ServiceInstances, ServiceList

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import find_target
from quorate_cli.exits import EXIT_NOT_FOUND
from quorate_cli.options import AsJson, Endpoints, NamespaceOption, TokenFile
from quorate_cli.tables import instances_table, services_table, show

app = typer.Typer(add_completion=False)


@app.command()
def services(
    service: Annotated[str | None, typer.Argument(help="Show this service's instances.", metavar="[SERVICE]")] = None,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """List the registered services, or one service's instances.

    Exits with 3 when the service has no instance.
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        if service is None:
            _show_services(control_plane.read(ServiceList, api_path("registry", namespace, "services")), as_json)
        else:
            path = api_path("registry", namespace, "services", service)
            _show_instances(control_plane.read(ServiceInstances, path), as_json)


def _show_services(found: ServiceList, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json())
    elif found.services:
        show(services_table(found.services))
    else:
        typer.echo(f"No service is registered in namespace {found.namespace}.")


def _show_instances(found: ServiceInstances, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json())
    elif found.instances:
        show(instances_table(found.instances))
    else:
        typer.echo(f"{found.service} has no instance in namespace {found.namespace}.", err=True)
    if not found.instances:
        raise typer.Exit(EXIT_NOT_FOUND)
