"""`quorate keys`: API keys for the gateway's clients.

A key is made here and leaves no trace: it is told once, to whoever runs the command, and only its digest goes into the
document that the gateway knows it by. What is lost cannot be found again, only replaced.
"""

import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import Annotated

import typer

from quorate_cli.options import AsJson

KEY_PREFIX = "qk_"
"""By which scanners for secrets, and people, recognise one."""
KEY_RANDOM_BYTES = 32

app = typer.Typer(add_completion=False, no_args_is_help=True, help="API keys for the gateway's clients.")


@app.callback()
def keys() -> None:
    """Make API keys for the gateway's clients."""


@app.command()
def new(
    key_id: Annotated[
        str,
        typer.Option("--id", help="Whose it is: in limits, logs and what services are told.", metavar="NAME",
                     show_default=False),
    ],
    expires: Annotated[
        str | None,
        typer.Option("--expires", help="Not valid from then on: '2027-01-31' or '2027-01-31T12:00:00+01:00'; UTC "
                     "when it does not say.", metavar="TIME", show_default="never"),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a key: print it, once, and its entry for gateway/api-keys.yaml. Asks nobody and publishes nothing. Example:

    \b
        quorate keys new --id shop-web
        quorate config edit default gateway api-keys.yaml    # add the entry under 'keys:'
    """
    _check_id(key_id)
    expires_at = None if expires is None else _read_time(expires)
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_RANDOM_BYTES)
    digest = hashlib.sha256(key.encode("ascii")).hexdigest()
    entry = entry_of(key_id, digest, expires_at)
    if as_json:
        shown = None if expires_at is None else _shown_time(expires_at)
        typer.echo(json.dumps({"id": key_id, "key": key, "sha256": digest, "expires": shown, "entry": entry}))
        return
    typer.echo(f"{key}\n")
    typer.echo("This is the key, shown now and never again: its client sends it as 'x-api-key'.")
    typer.echo("Its entry under 'keys:' in gateway/api-keys.yaml, which holds its digest alone:\n")
    typer.echo(f"  {entry}\n")
    typer.echo("To publish: quorate config edit default gateway api-keys.yaml")


def entry_of(key_id: str, digest: str, expires_at: datetime | None) -> str:
    """One line of YAML. The texts are quoted: `on`, `1e5` and some digests would be read as something else."""
    expires = "" if expires_at is None else f', expires: "{_shown_time(expires_at)}"'
    return f'- {{id: "{key_id}", sha256: "{digest}"{expires}}}'


def _check_id(key_id: str) -> None:
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - loads the gateway's schema
    from quorate_gateway.documents.access import KeyId  # noqa: PLC0415

    try:
        TypeAdapter(KeyId).validate_python(key_id)
    except ValidationError as error:
        text = f"{key_id!r} is no id: letters, digits, '.', '_' and '-' between them, at most 64"
        raise typer.BadParameter(text, param_hint="--id") from error


def _read_time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no time such as 2027-01-31T12:00:00Z", param_hint="--expires") from error
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    if found <= datetime.now(UTC):
        raise typer.BadParameter(f"{_shown_time(found)} is past: the key would never be valid", param_hint="--expires")
    return found


def _shown_time(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
