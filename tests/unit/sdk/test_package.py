"""Importing the package."""

import subprocess
import sys

import pytest
import quorate_sdk as quorate
from quorate_core.errors import SettingsError
from quorate_sdk.client import Client, read_token


def test_importing_the_wire_models_imports_no_http_client() -> None:
    code = "import sys, quorate_sdk.wire; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there_and_no_module_hides_one() -> None:
    import quorate_sdk.service_http  # noqa: F401 - a module named like a function would replace it

    assert all(callable(getattr(quorate, name)) for name in quorate.__all__)
    with pytest.raises(AttributeError):
        quorate.nothing_of_that_name  # noqa: B018


async def test_a_client_from_the_environment(tmp_path: object) -> None:
    client = Client.from_environment(
        {
            "QUORATE_ENDPOINTS": "http://a:1, http://b:2,",
            "QUORATE_NAMESPACE": "shop",
            "QUORATE_CACHE_DIR": str(tmp_path),
        }
    )
    assert client.control_plane.endpoints == ("http://a:1", "http://b:2")
    assert client.namespace == "shop"
    await client.close()


def test_a_token_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SettingsError, match="/nowhere/token"):
        read_token("/nowhere/token")
    assert read_token(None) is None
