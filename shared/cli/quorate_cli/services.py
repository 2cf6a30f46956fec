"""`quorate services`: what is registered, how services are protected, and taking an instance out of traffic."""

import json
import socket
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from quorate_core.errors import InvalidRequest
from quorate_sdk.wire import DEFAULT_NAMESPACE, Drained, ServiceInstances, ServiceList, ServiceSettings
from typer.core import TyperGroup

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import find_target
from quorate_cli.exits import EXIT_FAILED, EXIT_NOT_FOUND
from quorate_cli.options import AsJson, Endpoints, NamespaceOption, TokenFile
from quorate_cli.publishing import current_user
from quorate_cli.tables import instances_table, plain_table, printable, services_table, show

ANSWER_S = 5.0
"""For the answer beyond what is waited for."""
DRAIN_WAIT_S_MAX = 55.0
_JSON = {"content-type": "application/json"}


class _ShowByDefault(TyperGroup):
    """Whatever does not begin with the name of a command is what `show` is asked for."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's own context type
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if args and args[0] in known else ["show", *args])


app = typer.Typer(
    cls=_ShowByDefault, add_completion=False, rich_markup_mode=None,
    help="What is registered; without a command: `show`. A service called as a command is, by `services show NAME`.",
)  # fmt: skip
ServiceArgument = Annotated[str, typer.Argument(help="Such as 'order'.", metavar="SERVICE", show_default=False)]


@app.command("show")
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


@app.command()
def drain(
    service: ServiceArgument,
    instance: Annotated[str, typer.Argument(help="Its id.", metavar="INSTANCE", show_default=False)],
    wait: Annotated[
        float, typer.Option("--wait", help="For so many seconds at most.", min=0, max=DRAIN_WAIT_S_MAX)
    ] = 10.0,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Let an instance get no new requests, and wait until every gateway and client has said so. What it is working on
    goes on.

    Exits with 1 when somebody has not said so, and names them.
    """
    path = api_path("registry", namespace, "services", service, "instances", instance, "drain")
    attempt_s = wait + ANSWER_S
    with ControlPlane(find_target(endpoints, token_file), attempt_s + ANSWER_S, attempt_s) as control_plane:
        found = control_plane.write(Drained, "POST", path, parameters={"wait": str(wait)}, headers=_author())
    typer.echo(found.model_dump_json() if as_json else _told(found, instance))
    if not found.drained:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def settings(
    service: ServiceArgument,
    protection_threshold: Annotated[
        float | None,
        typer.Option(help="Protect the list while a smaller part of the instances is alive; 0: never.", min=0, max=1),
    ] = None,
    hold_s: Annotated[
        int | None, typer.Option("--hold-s", help="For so many seconds at most.", min=10, max=86_400)
    ] = None,
    default_check: Annotated[
        str | None, typer.Option(help="""JSON such as '{"type": "tcp"}', or 'none'; for those without a heartbeat.""")
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to the defaults first.")] = False,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Show a service's settings, or change those that are given."""
    given: dict[str, Any] = {"protection_threshold": protection_threshold, "hold_s": hold_s}
    given = {name: value for name, value in given.items() if value is not None}
    if default_check is not None:
        given["default_check"] = _check(default_check)
    path = api_path("registry", namespace, "services", service, "settings")
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        if reset:
            found = control_plane.write(ServiceSettings, "DELETE", path, headers=_author())
        else:
            found = control_plane.read(ServiceSettings, path)
        if given:
            changed = _changed(found, given).model_dump_json().encode()
            headers = {**_JSON, **_author()}
            found = control_plane.write(ServiceSettings, "PUT", path, headers=headers, content=changed)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    check = "-" if found.default_check is None else found.default_check.model_dump_json()
    rows = [
        ("protection_threshold", f"{found.protection_threshold:g}"), ("hold_s", str(found.hold_s)),
        ("default_check", check),
    ]  # fmt: skip
    show(plain_table(("setting", "value"), rows))


def _changed(settings: ServiceSettings, given: dict[str, Any]) -> ServiceSettings:
    try:
        return ServiceSettings.model_validate({**settings.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _check(text: str) -> Any:
    if text == "none":
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"--default-check: {text[:80]!r} is no JSON") from error


def _author() -> dict[str, str]:
    who = f"{current_user()}@{socket.gethostname()}"
    return {"quorate-author": "".join(char if char.isascii() and char.isprintable() else "?" for char in who)[:128]}


def _told(found: Drained, instance: str) -> str:
    if found.drained:
        return f"{instance} is drained at revision {found.revision}: {_count(len(found.acknowledged))} said so."
    lines = [f"{instance} is DRAINING since revision {found.revision}, and these have not said that they know:"]
    lines += [f"  {one.subscriber} at {one.node}: has revision {one.revision}" for one in found.pending]
    lines += [f"  whoever watches at {one.node}: {one.error}" for one in found.silent_nodes]
    return "\n".join(map(printable, lines))


def _count(subscribers: int) -> str:
    return "nobody watches it, and nobody" if not subscribers else f"all {subscribers} that watch it"


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
    if found.is_protected and not as_json:
        typer.echo("Protected: many have lapsed at once; stale ones are kept until it is known that they are gone.")
    if not found.instances:
        raise typer.Exit(EXIT_NOT_FOUND)
