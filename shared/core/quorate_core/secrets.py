"""Generated credentials: made at first start, never defaulted, readable by their reader only.

A secret's file is its reader's own, with mode 0600. Or it is root's, and the reader has it by its group, with mode 0640
or 0440: so it is where the operating system or an orchestrator hands secrets out, and the reader cannot change the
mode. It is the rule of PostgreSQL for its private keys ("Secure TCP/IP Connections with SSL", of its manual).
"""

import contextlib
import os
import secrets
from pathlib import Path

from quorate_core.errors import SettingsError

SECRET_BYTES = 32
SECRET_CHARS_MIN = 32


def generate_secret() -> str:
    """256 random bits in URL-safe text."""
    return secrets.token_urlsafe(SECRET_BYTES)


def load_or_create_secret(path: Path) -> str:
    """The secret kept in `path`; on the first call it is generated and stored with mode 0600.

    The file appears whole or not at all, and the first of several that call at once wins.
    """
    if not path.exists():
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(generate_secret() + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(aside)
        finally:
            aside.unlink()
    return load_secret(path)


def load_secret(path: Path) -> str:
    """The secret in `path`. Raises SettingsError when it is missing, weak, or others can read it."""
    try:
        text = path.read_text().strip()
        status = path.stat()
    except OSError as error:
        raise SettingsError(f"the secret file {path} cannot be read: {error.strerror}") from error
    mode = widest_mode(status.st_uid, os.geteuid())
    if status.st_mode & 0o077 & ~mode:
        raise SettingsError(f"the secret file {path} can be read by others; run: chmod {mode:o} {path}")
    require_strong(text, f"the secret in {path}")
    return text


def widest_mode(owner_uid: int, reader_uid: int) -> int:
    """The most that a secret's file may permit: 0600, or 0640 when it is root's and its reader is not root.

    What is root's, and closed to the world, its reader has by the group that root has chosen for it.
    """
    return 0o640 if owner_uid == 0 and reader_uid != 0 else 0o600


def require_strong(secret: str, what: str) -> None:
    """Refuse what could be guessed: shorter than 32 characters, or too few different ones."""
    if len(secret) < SECRET_CHARS_MIN or len(set(secret)) < 10:
        raise SettingsError(
            f"{what} is too weak: at least {SECRET_CHARS_MIN} characters are wanted, at random. "
            "One way to make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
