"""`quorate config`: the documents of the config center."""

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer
from quorate_core.errors import NotFound, PayloadTooLarge
from quorate_sdk.wire import (
    CONTENT_BYTES_MAX,
    DEFAULT_NAMESPACE,
    ConfigDocument,
    ConfigFormat,
    ConfigHistory,
    ConfigList,
    ConfigMetadata,
    Rollback,
)

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.config_edit import edit
from quorate_cli.config_watch import watch
from quorate_cli.endpoints import find_target
from quorate_cli.options import AsJson, Author, Comment, Endpoints, Group, IfVersion, Key, Namespace, TokenFile
from quorate_cli.publishing import condition_headers, current_user, publish
from quorate_cli.tables import documents_table, history_table, show

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The documents of the config center.")
app.command()(edit)
app.command()(watch)


@app.command("list")
def list_documents(
    namespace: Annotated[str, typer.Argument(help="The namespace.", metavar="[NAMESPACE]")] = DEFAULT_NAMESPACE,
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """List the documents of a namespace."""
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = control_plane.read(ConfigList, api_path("config", namespace), {"group": group} if group else None)
    if as_json:
        typer.echo(found.model_dump_json())
    elif found.documents:
        show(documents_table(found.documents))
    else:
        typer.echo(f"Namespace {namespace} has no document" + (f" in group {group}." if group else "."))


@app.command()
def get(
    namespace: Namespace, group: Group, key: Key,
    version: Annotated[int | None, typer.Option(help="An older version.", min=1)] = None,
    as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Print a document's content as it is; with --json, with its version, author and all."""
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        document = _read(control_plane, namespace, group, key, version)
    if as_json:
        typer.echo(document.model_dump_json())
    else:
        typer.echo(document.content.encode(), nl=False)


@app.command()
def put(
    namespace: Namespace, group: Group, key: Key,
    file: Annotated[str, typer.Argument(help="The new content; '-' reads stdin.", metavar="FILE", show_default=False)],
    if_version: IfVersion = None, comment: Comment = "", author: Author = None,
    format_: Annotated[ConfigFormat | None, typer.Option("--format", help="The content's format.",
                                                         show_default="by the key's ending")] = None,
    as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Publish a document. It is validated first, and in force at once.

    Exits with 4 when the content is refused, or when --if-version is not the version now.
    """
    target = find_target(endpoints, token_file)
    content = _read_content(file)
    with ControlPlane(target) as control_plane:
        published = publish(
            control_plane, (namespace, group, key), content, if_version, comment, author or current_user(), format_
        )
    _tell(published, "is", as_json)


@app.command()
def delete(
    namespace: Namespace, group: Group, key: Key, if_version: IfVersion = None,
    as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Delete a document. Its history stays, and rollback brings it back."""
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        deleted = control_plane.write(
            ConfigMetadata, "DELETE", api_path("config", namespace, group, key), headers=condition_headers(if_version)
        )
    _tell(deleted, "is deleted as of", as_json)


@app.command()
def history(
    namespace: Namespace, group: Group, key: Key,
    limit: Annotated[int, typer.Option("--limit", "-n", help="So many versions, newest first.", min=1, max=1000)] = 20,
    as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """List a document's versions, newest first."""
    path = api_path("config", namespace, group, key, "history")
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = control_plane.read(ConfigHistory, path, {"limit": limit})
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        show(history_table(found.versions))


@app.command()
def diff(
    namespace: Namespace, group: Group, key: Key,
    old: Annotated[int, typer.Option("--from", help="The older version.", min=1, show_default=False)],
    new: Annotated[int | None, typer.Option("--to", help="The newer version.", min=1, show_default="now's")] = None,
    endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Show what changed between two versions. Prints nothing when they are the same."""
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        before = _read(control_plane, namespace, group, key, old)
        after = _read(control_plane, namespace, group, key, new)
    lines = difflib.unified_diff(
        before.content.splitlines(keepends=True), after.content.splitlines(keepends=True),
        f"{group}/{key} version {before.version}", f"{group}/{key} version {after.version}",
    )  # fmt: skip
    for line in lines:
        typer.echo(line, nl=not line.endswith("\n"))


@app.command()
def rollback(
    namespace: Namespace, group: Group, key: Key,
    version: Annotated[int, typer.Argument(help="Publish it again.", metavar="VERSION", min=1, show_default=False)],
    comment: Comment = "", author: Author = None,
    as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Publish an older version again, as a new version."""
    body = Rollback(
        version=version, comment=comment or f"rollback to version {version}", author=author or current_user()
    )
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        published = control_plane.write(
            ConfigMetadata, "POST", api_path("config", namespace, group, key, "rollback"),
            headers={"content-type": "application/json"}, content=body.model_dump_json().encode(),
        )  # fmt: skip
    _tell(published, "is", as_json)


def _read(control_plane: ControlPlane, namespace: str, group: str, key: str, version: int | None) -> ConfigDocument:
    parameters = {"version": version} if version is not None else None
    try:
        return control_plane.read(ConfigDocument, api_path("config", namespace, group, key), parameters)
    except NotFound as error:
        advice = f"See which there are: quorate config list {namespace}"
        raise NotFound(error.detail, **{"advice": advice, **error.extensions}) from error


def _read_content(file: str) -> bytes:
    """One byte more than may be published is read at most, so that an endless input ends."""
    if file == "-":
        content = sys.stdin.buffer.read(CONTENT_BYTES_MAX + 1)
    else:
        with Path(file).open("rb") as source:
            content = source.read(CONTENT_BYTES_MAX + 1)
    if len(content) > CONTENT_BYTES_MAX:
        raise PayloadTooLarge(f"{file} is larger than a document may be ({CONTENT_BYTES_MAX} bytes)")
    return content


def _tell(changed: ConfigMetadata, how: str, as_json: bool) -> None:
    if as_json:
        typer.echo(changed.model_dump_json())
    else:
        typer.echo(f"{changed.group}/{changed.key} {how} version {changed.version} (revision {changed.revision})")
