"""The settings of the process: what is refused and by which name, what workers are told, and what the page says."""

import re
from pathlib import Path

import pytest
from quorate_core.errors import SettingsError
from quorate_gateway.settings import GatewaySettings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "gateway.md"
NEEDED = ["--name", "gateway", "--data-dir", "data", "--endpoints", "http://127.0.0.1:9"]
TLS = ["--tls-certificate-file", "tls.crt", "--tls-key-file", "tls.key"]


def read(*arguments: str) -> GatewaySettings:
    return GatewaySettings.from_command_line("quorate-gateway", [*NEEDED, *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "--workers "),
        (["--workers", "16"], "--workers "),
        (["--trusted-proxies", "10.0.0.0/8,10.0.0.1/8"], "--trusted-proxies.*'10.0.0.1/8' is no network"),
        (["--trusted-proxies", "10.0.0.0/99"], "'10.0.0.0/99' is no network"),
        (["--trusted-proxies", "proxy.example"], "'proxy.example' is no network"),
        (TLS[:2], "both of --tls-certificate-file and --tls-key-file"),
        (TLS[2:], "both of --tls-certificate-file and --tls-key-file"),
        (["--head-bytes-max", "10"], "--head-bytes-max "),
        (["--head-fields-max", "many"], "--head-fields-max "),
        (["--idle-timeout-ms", "0"], "--idle-timeout-ms "),
        (["--connections-per-client-max", "0"], "--connections-per-client-max "),
        (["--workers", "4", "--requests-active-max", "3"], "--requests-active-max is less"),
    ],
)
def test_a_bad_value_is_refused_by_its_flag(arguments: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read(*arguments)


def test_a_gateway_without_nodes_is_refused() -> None:
    with pytest.raises(SettingsError, match="--endpoints "):
        GatewaySettings.from_command_line("quorate-gateway", [*NEEDED[:-1], ","])


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_GATEWAY_REDIS_URL", "redis://:secret@cache:6379/0")
    monkeypatch.setenv("QUORATE_GATEWAY_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8")
    monkeypatch.setenv("QUORATE_GATEWAY_WORKERS", "3")
    settings = read()
    assert (settings.trusted_proxies, settings.workers) == (("10.0.0.0/8", "fd00::/8"), 3)
    assert "secret" not in repr(settings)
    told = settings.for_worker(b"{}")
    assert told.redis_url == "redis://:secret@cache:6379/0"
    assert "secret" not in repr(told)


def test_a_worker_has_its_part_of_the_requests_and_all_together_no_less_than_was_said() -> None:
    told = read("--workers", "3", "--requests-active-max", "100").for_worker(b"{}")
    assert told.active_max == 34


def test_a_client_may_have_as_many_connections_as_there_are_unless_it_is_said() -> None:
    assert read().for_worker(b"{}").connection_limits(500).connections_per_client_max == 500
    said = read("--connections-per-client-max", "7", "--head-timeout-ms", "1500").for_worker(b"{}")
    limits = said.connection_limits(500)
    assert (limits.connections_per_client_max, limits.client_connections_max) == (7, 500)
    assert limits.head_timeout_s == 1.5


def test_the_page_has_every_flag_and_no_other() -> None:
    section = PAGE.read_text().partition("## Settings")[2].partition("## Signals")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `--")]
    flags = {flag for row in rows for flag in re.findall(r"`--([a-z-]+)`", row)}
    assert flags == {name.replace("_", "-") for name in GatewaySettings.model_fields}
