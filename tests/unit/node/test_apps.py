"""Apps are found by entry point; an unknown one is refused, naming those that there are."""

from importlib.metadata import EntryPoint

import pytest
from quorate_core.errors import SettingsError
from quorate_node.apps import find_apps
from quorate_store.apps import APPS_GROUP


def test_all_installed_apps_run_unless_told_otherwise() -> None:
    assert [app.name for app in find_apps(None)] == ["config-center", "registry"]


def test_only_the_apps_that_are_wanted_run_each_once() -> None:
    assert [app.name for app in find_apps(("registry", "registry"))] == ["registry"]
    assert find_apps(()) == []


def test_an_unknown_app_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="there is no app consul; installed are: config-center, registry"):
        find_apps(("registry", "consul"))


def test_an_app_that_cannot_be_imported_is_refused_by_name() -> None:
    broken = EntryPoint("broken", "quorate_node.no_such_module:App", APPS_GROUP)
    with pytest.raises(SettingsError, match="broken is installed and cannot be imported"):
        find_apps(None, [broken])
