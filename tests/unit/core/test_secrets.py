"""Credentials: generated once, kept private, and weak ones refused."""

from pathlib import Path

import pytest
from quorate_core.errors import SettingsError
from quorate_core.secrets import generate_secret, load_or_create_secret, load_secret


def test_the_first_call_generates_and_later_calls_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = load_or_create_secret(path)
    assert load_or_create_secret(path) == first
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_secrets_differ() -> None:
    assert generate_secret() != generate_secret()


def test_a_secret_that_others_can_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    load_or_create_secret(path)
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_secret(path)


@pytest.mark.parametrize("weak", ["", "changeme", "a" * 64, "abcabcabc" * 8])
def test_a_weak_secret_is_refused(tmp_path: Path, weak: str) -> None:
    path = tmp_path / "secret"
    path.write_text(weak)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="too weak"):
        load_secret(path)


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        load_secret(tmp_path / "nowhere")
