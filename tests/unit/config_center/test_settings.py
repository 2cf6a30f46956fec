"""How many versions are kept is a setting of the node's environment."""

import pytest
from quorate_config_center import ConfigCenterApp
from quorate_config_center.settings import ConfigCenterSettings
from quorate_core.errors import SettingsError


def test_a_hundred_versions_are_kept_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ConfigCenterSettings.from_environment().versions_kept == 100
    monkeypatch.setenv("QUORATE_CONFIG_CENTER_VERSIONS_KEPT", "7")
    assert ConfigCenterSettings.from_environment().versions_kept == 7


@pytest.mark.parametrize("value", ["0", "1001", "many"])
def test_a_bad_number_is_refused_naming_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("QUORATE_CONFIG_CENTER_VERSIONS_KEPT", value)
    with pytest.raises(SettingsError, match="QUORATE_CONFIG_CENTER_VERSIONS_KEPT: "):
        ConfigCenterApp()
