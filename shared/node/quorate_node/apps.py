"""Finds the apps to run: by entry point, so that a node need not know them."""

from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from quorate_core.errors import SettingsError
from quorate_store.apps import APPS_GROUP, App


def find_apps(wanted: Sequence[str] | None, entries: Iterable[EntryPoint] | None = None) -> list[App]:
    """The apps named in `wanted`, or all that are installed, each made once, in order of name. `entries`: what is
    installed, if not what this environment has.

    Raises SettingsError for a name that is not installed, naming those that are, and for an app that cannot be
    imported.
    """
    entries = entry_points(group=APPS_GROUP) if entries is None else entries
    installed = {entry.name: entry for entry in entries}
    unknown = sorted(set(wanted or ()) - installed.keys())
    if unknown:
        available = ", ".join(sorted(installed)) or "none"
        raise SettingsError(f"--apps: there is no app {', '.join(unknown)}; installed are: {available}")
    apps: list[App] = []
    for name in sorted(installed if wanted is None else set(wanted)):
        try:
            apps.append(installed[name].load()())
        except ImportError as error:
            raise SettingsError(f"--apps: {name} is installed and cannot be imported: {error}") from error
    return apps
