"""`quorate config watch`: each change of a document as it comes, across lost connections and restarts of nodes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from quorate_core.errors import QuorateError, Retry
from quorate_sdk.wire import DEFAULT_NAMESPACE, ConfigDelta, ConfigDocument, ConfigSnapshot

from quorate_cli.client import ControlPlane, StreamEvent, api_path
from quorate_cli.endpoints import find_target
from quorate_cli.options import AsJson, Endpoints, TokenFile

RECONNECT_INTERVAL_S = 0.5
_GONE = {"deleted": True, "content": "", "author": "?", "comment": "found to be gone after the connection was lost"}

Seen = dict[tuple[str, str], ConfigDocument]
"""By group and key, as last told."""


def watch(
    namespace: Annotated[str, typer.Argument(help="The namespace.", metavar="[NAMESPACE]")] = DEFAULT_NAMESPACE,
    group: Annotated[str | None, typer.Argument(help="Only this group.", metavar="[GROUP]")] = None,
    key: Annotated[str | None, typer.Argument(help="Only this document.", metavar="[KEY]")] = None,
    as_json: AsJson = False, endpoints: Endpoints = None, token_file: TokenFile = None,
) -> None:  # fmt: skip
    """Print what is there, and then each change as it comes, until Ctrl-C. With --json: one document a line."""
    parameters: dict[str, list[str]] = {"key": [f"{group}/{key}"]} if group and key else {}
    with (
        ControlPlane(find_target(endpoints, token_file)) as control_plane,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for document in _changes(control_plane, api_path("config", namespace, "watch"), parameters):
            if group is None or document.group == group:
                typer.echo(document.model_dump_json() if as_json else _line(document))


def _changes(control_plane: ControlPlane, path: str, parameters: dict[str, list[str]]) -> Iterator[ConfigDocument]:
    """Every change once, for ever. Raises when the first connection fails; after that it connects again."""
    seen: Seen = {}
    last_event_id, has_connected, is_lost = "", False, False
    while True:
        try:
            for event in control_plane.stream(path, parameters, last_event_id):
                if is_lost:
                    typer.echo("Connected again.", err=True)
                has_connected, is_lost = True, False
                last_event_id = "" if event.event == "resync" else (event.id or last_event_id)
                yield from _news(event, seen)
        except QuorateError as error:
            if not has_connected or error.kind.retry is Retry.NEVER:
                raise
        if has_connected and not is_lost:
            typer.echo("The connection was lost; connecting again.", err=True)
            is_lost = True
        time.sleep(RECONNECT_INTERVAL_S)


def _news(event: StreamEvent, seen: Seen) -> Iterator[ConfigDocument]:
    """The documents of `event` that were not seen in this version before.

    A snapshot leaves out what does not exist: after a lost connection it tells so what was deleted meanwhile, though
    not by whom.
    """
    if event.event == "snapshot":
        documents = ConfigSnapshot.model_validate_json(event.data).documents
        there = {(document.group, document.key) for document in documents}
        gone = [document for name, document in seen.items() if name not in there and not document.deleted]
        documents += [document.model_copy(update=_GONE) for document in gone]
    elif event.event == "delta":
        documents = ConfigDelta.model_validate_json(event.data).documents
    else:
        return
    for document in documents:
        name = (document.group, document.key)
        known = seen.get(name)
        if known is None or (known.version, known.deleted) != (document.version, document.deleted):
            seen[name] = document
            yield document


def _line(document: ConfigDocument) -> str:
    what = "deleted" if document.deleted else f"version {document.version}"
    why = f": {document.comment}" if document.comment else ""
    return f"{document.changed_at} {document.group}/{document.key} {what} by {document.author}{why}"
