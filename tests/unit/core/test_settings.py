"""Settings: typed, from flags before environment, and a bad one is named with its flag and variable."""

from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict
from quorate_core.errors import SettingsError
from quorate_core.settings import Address, HostPort, ProcessSettings


class SampleSettings(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="QUORATE_SAMPLE_")

    listen: Address


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUORATE_SAMPLE_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("QUORATE_SAMPLE_NAME", "from-environment")
    settings = SampleSettings.from_command_line("sample", ["--listen", "127.0.0.1:2", "--data-dir", str(tmp_path)])
    assert settings.listen == HostPort("127.0.0.1", 2)
    assert settings.name == "from-environment"


def test_every_bad_setting_is_named_by_flag_and_variable() -> None:
    with pytest.raises(SettingsError) as caught:
        SampleSettings.from_command_line("sample", ["--listen", "nonsense", "--name", "a"])
    assert "--listen (or QUORATE_SAMPLE_LISTEN): 'nonsense' is no address" in caught.value.detail
    assert "--data-dir (or QUORATE_SAMPLE_DATA_DIR)" in caught.value.detail


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:8501", "127.0.0.1", 8501), ("[::1]:80", "::1", 80), ("node-1.example:0", "node-1.example", 0)],
)
def test_addresses_survive_a_round_trip(text: str, host: str, port: int) -> None:
    address = HostPort.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, text)


@pytest.mark.parametrize(
    "text", ["", "8501", "127.0.0.1", "127.0.0.1:65536", "::1:80", "a b:80", "host:-1", "host:80x"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        HostPort.parse(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1:1", True), ("127.8.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False),
     ("10.0.0.1:1", False), ("node-1:1", False), ("[::]:1", False)],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(text: str, loopback: bool) -> None:
    assert HostPort.parse(text).is_loopback is loopback
