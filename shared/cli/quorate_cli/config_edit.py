"""`quorate config edit`: a document in an editor, published if nobody has changed it meanwhile.

What somebody has typed is never lost: unless it was published, the file stays, and its place is told.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import typer
from quorate_core.errors import InvalidContent, InvalidRequest, NotFound, QuorateError
from quorate_sdk.wire import ConfigDocument, ConfigMetadata

from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import find_target
from quorate_cli.exits import describe
from quorate_cli.options import Author, Comment, Endpoints, Group, Key, Namespace, TokenFile
from quorate_cli.publishing import current_user, publish

DEFAULT_EDITOR = "vi"


def edit(
    namespace: Namespace, group: Group, key: Key, comment: Comment = "", author: Author = None,
    endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Edit a document in $VISUAL, $EDITOR or vi, and publish it if nobody has changed it meanwhile.

    A document that does not exist begins empty. An edit that is refused is kept, and its file named.
    """
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        document = _read_or_none(control_plane, namespace, group, key)
        before = document.content.encode() if document is not None else b""
        file = _edit_file(key, before)
        name = (namespace, group, key)
        version = document.version if document is not None else 0
        published = _edit_until_published(control_plane, name, file, before, version, comment, author or current_user())
    file.unlink()
    if published is None:
        typer.echo("Nothing was changed.")
    else:
        typer.echo(f"{group}/{key} is version {published.version} (revision {published.revision})")


def _edit_until_published(
    control_plane: ControlPlane, name: tuple[str, str, str], file: Path, before: bytes, version: int, comment: str,
    author: str,
) -> ConfigMetadata | None:  # fmt: skip
    """None when nothing was changed. Raises what refused it, with the place of the edit, once the editor gives up."""
    while True:
        _open_editor(file, before)
        after = file.read_bytes()
        if after == before:
            return None
        try:
            return publish(control_plane, name, after, version, comment, author)
        except QuorateError as error:
            if isinstance(error, InvalidContent | InvalidRequest) and _asks_for_another_go(error):
                continue
            raise _with_place(error, file, name) from error


def _asks_for_another_go(error: QuorateError) -> bool:
    """Content that is wrong can be put right at once, where there is somebody to ask."""
    if not sys.stdin.isatty():
        return False
    for line in describe(error):
        typer.echo(line, err=True)
    return typer.confirm("Edit it again?", default=True, err=True)


def _with_place(error: QuorateError, file: Path, name: tuple[str, str, str]) -> QuorateError:
    extensions = dict(error.extensions)
    earlier = extensions.pop("advice", "")
    advice = f"Your edit is kept in {file}. To publish it: quorate config put {' '.join(name)} {file}"
    extensions["advice"] = f"{earlier}\n{advice}".strip()
    return type(error)(error.detail, **extensions)


def _read_or_none(control_plane: ControlPlane, namespace: str, group: str, key: str) -> ConfigDocument | None:
    try:
        return control_plane.read(ConfigDocument, api_path("config", namespace, group, key))
    except NotFound:
        return None


def _edit_file(key: str, content: bytes) -> Path:
    """A file of our own, readable by nobody else, whose ending lets the editor know the format."""
    descriptor, path = tempfile.mkstemp(prefix="quorate-edit-", suffix=f"-{key}")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return Path(path)


def _open_editor(file: Path, before: bytes) -> None:
    """Wait until the editor has ended. Raises when it cannot be started or says that it failed."""
    words = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or DEFAULT_EDITOR)
    try:
        code = subprocess.run([*words, str(file)], check=False).returncode  # noqa: S603 - the user's own editor
    except OSError as error:
        file.unlink()
        raise NotFound(
            f"the editor {words[0]!r} cannot be started: {error.strerror}",
            advice="Name one that is installed: EDITOR=nano quorate config edit …",
        ) from error
    if code != 0:
        kept = f" Your edit is kept in {file}." if file.read_bytes() != before else ""
        raise InvalidRequest(f"the editor ended with exit code {code}; nothing was published.{kept}")
