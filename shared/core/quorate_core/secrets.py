"""Generated credentials: made at first start, never defaulted, readable by their owner only."""

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
    """The secret kept in `path`; on the first call it is generated and stored with mode 0600."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return load_secret(path)
    with os.fdopen(descriptor, "w") as file:
        file.write(generate_secret() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return load_secret(path)


def load_secret(path: Path) -> str:
    """The secret in `path`. Raises SettingsError when it is missing, weak, or others can read it."""
    try:
        text = path.read_text().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"the secret file {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise SettingsError(f"the secret file {path} can be read by others; run: chmod 600 {path}")
    require_strong(text, f"the secret in {path}")
    return text


def require_strong(secret: str, what: str) -> None:
    """Refuse what could be guessed: shorter than 32 characters, or too few different ones."""
    if len(secret) < SECRET_CHARS_MIN or len(set(secret)) < 10:
        raise SettingsError(
            f"{what} is too weak: at least {SECRET_CHARS_MIN} characters are wanted, at random. "
            "One way to make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
