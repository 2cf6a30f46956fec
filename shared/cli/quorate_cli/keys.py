"""`quorate cluster get|put|del`: the store's own keys, for operators.

What the apps keep is there too, under `quorate/`, to be read; it is changed by their own commands.
"""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from quorate_core.errors import InvalidRequest, NotFound, PayloadTooLarge

from quorate_cli.client import ControlPlane
from quorate_cli.endpoints import find_target
from quorate_cli.exits import EXIT_REFUSED, EXIT_USAGE
from quorate_cli.key_formats import as_fields, found_as_json, keys_table, shown
from quorate_cli.options import AsJson, Endpoints, TokenFile
from quorate_cli.stored_keys import VALUE_BYTES_MAX, Found, KeyRange, StoredKey, StoredKeys
from quorate_cli.tables import show

LIMIT_DEFAULT = 1_000

StoredKeyArgument = Annotated[str, typer.Argument(help="Such as 'app/flag'.", metavar="KEY", show_default=False)]
Prefix = Annotated[bool, typer.Option("--prefix", help="All keys that begin with KEY.")]


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    RAW = "raw"


def get(
    key: StoredKeyArgument,
    prefix: Prefix = False,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Without values.")] = False,
    limit: Annotated[int, typer.Option(help="So many keys at most, the first ones; 0: all.", min=0)] = LIMIT_DEFAULT,
    revision: Annotated[int, typer.Option(help="As of this revision.", min=0, show_default="now's")] = 0,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="raw: values as they are; keys with --keys-only.")
    ] = Output.TABLE,
    as_json: AsJson = False,
    serializable: Annotated[bool, typer.Option(help="Ask one node alone: maybe old, needs no leader.")] = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Read a key of the store, or all with a prefix. Exits with 3 when there is no such key. Examples:

    \b
        quorate cluster get app/flag -o raw
        quorate cluster get quorate/nodes/ --prefix
    """
    keys = KeyRange(as_key(key, may_be_empty=prefix), prefix)
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        found = StoredKeys(control_plane).read(
            keys, limit=limit, revision=revision, keys_only=keys_only, serializable=serializable
        )
    output = Output.JSON if as_json else output
    _require_found(keys, found)
    if output is Output.JSON:
        typer.echo(found_as_json(found, keys_only=keys_only))
    elif output is Output.RAW:
        _echo_raw(found, keys_only=keys_only, each_on_a_line=prefix or keys_only)
    elif found.kvs:
        show(keys_table(found, keys_only=keys_only))
    else:
        typer.echo(f"No key begins with {shown(keys.key)!r} at revision {found.revision}.")
    if found.count > len(found.kvs):
        typer.echo(f"These are the first {len(found.kvs):,} of {found.count:,} keys; for all: --limit 0", err=True)


def put(
    key: StoredKeyArgument,
    value: Annotated[
        str, typer.Argument(help="Text; @FILE: what is in it; -: stdin.", metavar="[VALUE|@FILE|-]")
    ] = "-",
    lease: Annotated[
        str, typer.Option(help="Attach it to this lease; 0x… for hexadecimal.", show_default="none")
    ] = "0",
    previous: Annotated[bool, typer.Option("--previous", help="Show what it was before.")] = False,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Write a key of the store. What is sent again after a lost answer is applied once. Examples:

    \b
        quorate cluster put app/flag on
        quorate cluster put app/certificate @cert.der
    """
    lease_id, target = _lease(lease), find_target(endpoints, token_file)
    key_bytes, content = as_key(key), _value(value)
    with ControlPlane(target) as control_plane:
        revision, before = StoredKeys(control_plane).put(key_bytes, content, lease_id, previous=previous)
    if as_json:
        more = {"previous": as_fields(before) if before else None} if previous else {}
        typer.echo(json.dumps({"revision": revision, **more}))
        return
    typer.echo(f"{shown(key_bytes)} is written at revision {revision}.")
    if previous:
        typer.echo(_was(before))


def delete(
    key: StoredKeyArgument,
    prefix: Prefix = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however many they are.")] = False,
    as_json: AsJson = False,
    endpoints: Endpoints = None,
    token_file: TokenFile = None,
) -> None:
    """Delete a key of the store, or all with a prefix; several are asked about first.

    Exits with 3 when there is no such key. Examples:

    \b
        quorate cluster del app/flag
        quorate cluster del app/ --prefix --yes
    """
    keys = KeyRange(as_key(key, may_be_empty=prefix), prefix)
    with ControlPlane(find_target(endpoints, token_file)) as control_plane:
        stored = StoredKeys(control_plane)
        if prefix and not yes:
            _ask_about_many(keys, stored.count(keys))
        revision, deleted = stored.delete(keys)
    if not deleted and not prefix:
        raise _no_such_key(keys, revision)
    if as_json:
        typer.echo(json.dumps({"revision": revision, "deleted": deleted}))
    else:
        typer.echo(f"{deleted:,} {'key is' if deleted == 1 else 'keys are'} deleted as of revision {revision}.")


def as_key(text: str, *, may_be_empty: bool = False) -> bytes:
    """A key from the command line, byte for byte as the shell gave it. Raises InvalidRequest for an empty one."""
    if not text and not may_be_empty:
        raise InvalidRequest("a key has at least one byte; for every key: '' --prefix")
    return os.fsencode(text)


def _lease(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise InvalidRequest(f"{text!r} is no lease; write its number, or 0x… for hexadecimal") from None


def _value(text: str) -> bytes:
    if text == "-":
        return _bounded(sys.stdin.buffer, "standard input")
    if text.startswith("@"):
        with Path(text[1:]).open("rb") as file:
            return _bounded(file, text[1:])
    return os.fsencode(text)


def _bounded(source: BinaryIO, name: str) -> bytes:
    """One byte more than a value may have is read at most, so that an endless input ends."""
    content = source.read(VALUE_BYTES_MAX + 1)
    if len(content) > VALUE_BYTES_MAX:
        raise PayloadTooLarge(f"{name} is larger than a value may be ({VALUE_BYTES_MAX} bytes)")
    return content


def _echo_raw(found: Found, *, keys_only: bool, each_on_a_line: bool) -> None:
    for kv in found.kvs:
        typer.echo(kv.key if keys_only else kv.value, nl=each_on_a_line)


def _require_found(keys: KeyRange, found: Found) -> None:
    if not found.count and not keys.is_prefix:
        raise _no_such_key(keys, found.revision)


def _no_such_key(keys: KeyRange, revision: int) -> NotFound:
    return NotFound(
        f"there is no key {shown(keys.key)!r} at revision {revision}",
        advice=f"See which there are: quorate cluster get '{shown(keys.key)}' --prefix --keys-only",
    )


def _was(before: StoredKey | None) -> str:
    if before is None:
        return "It was not there before."
    return f"Before: {shown(before.value)} (since revision {before.mod_revision})"


def _ask_about_many(keys: KeyRange, count: int) -> None:
    if count <= 1:
        return
    what = f"{count:,} keys that begin with {shown(keys.key)!r}"
    if not sys.stdin.isatty():
        typer.echo(f"quorate: {what} would be deleted; without a terminal to ask at, say --yes", err=True)
        raise typer.Exit(EXIT_USAGE)
    if not typer.confirm(f"Delete {what}?"):
        typer.echo("Nothing was changed.")
        raise typer.Exit(EXIT_REFUSED)
