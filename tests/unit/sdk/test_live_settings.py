"""Settings that follow a document, and stay as they are when it is bad."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from pydantic import BaseModel, Field
from quorate_core.errors import SettingsError
from quorate_sdk.config_watcher import ConfigWatcher
from quorate_sdk.control_plane import ControlPlane, StreamEvent
from quorate_sdk.live_settings import LiveSettings
from quorate_sdk.wire import ConfigDelta, ConfigDocument, ConfigFormat, ConfigSnapshot

NAME = "order/settings.yaml"


class OrderSettings(BaseModel):
    max_lines: int = Field(default=100, ge=1)
    greeting: str = "hello"


def document(content: str, version: int = 1, **changes: object) -> ConfigDocument:
    fields = {
        "namespace": "default", "group": "order", "key": "settings.yaml", "version": version, "revision": version + 10,
        "format": ConfigFormat.YAML, "author": "a", "comment": "", "changed_at": "2026-01-01T00:00:00Z",
        "sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content,
    }  # fmt: skip
    return ConfigDocument.model_validate({**fields, **changes})


@pytest.fixture
async def watcher() -> AsyncIterator[ConfigWatcher]:
    """Not started: the tests hand it events as the control plane would."""
    async with ControlPlane(["http://127.0.0.1:1"]) as control_plane:
        yield ConfigWatcher(control_plane)


def publish(watcher: ConfigWatcher, *documents: ConfigDocument) -> None:
    delta = ConfigDelta(revision=max(found.revision for found in documents), documents=list(documents))
    watcher.apply(StreamEvent("delta", delta.revision, delta.model_dump_json()))


def test_without_a_document_the_defaults_hold(watcher: ConfigWatcher) -> None:
    live = LiveSettings(OrderSettings, NAME, watcher)
    assert (live.current, live.version, live.revision, live.last_error) == (OrderSettings(), 0, 0, None)
    assert watcher.keys == (NAME,)


def test_a_published_document_is_in_force_at_once_and_told(watcher: ConfigWatcher) -> None:
    live = LiveSettings(OrderSettings, NAME, watcher)
    told: list[tuple[int, int]] = []
    unsubscribe = live.subscribe(lambda old, new: told.append((old.max_lines, new.max_lines)))
    publish(watcher, document("max_lines: 5"))
    publish(watcher, document("max_lines: 5\n# a comment changes no value", version=2))
    assert (live.current.max_lines, live.version, live.revision) == (5, 2, 12)
    unsubscribe()
    unsubscribe()
    publish(watcher, document("max_lines: 6", version=3))
    assert told == [(100, 5)]


@pytest.mark.parametrize(
    ("content", "changes", "reason"),
    [
        ("max_lines: 0", {}, "max_lines"),
        ("max_lines: [", {}, "no YAML"),
        ("- a", {}, "mapping"),
        ("[" * 100_000, {"format": "json"}, "nested"),
        ("{", {"format": "json"}, "Expecting"),
        ("a = ", {"format": "toml"}, "Invalid"),
        ("a=b", {"format": "properties"}, "properties"),
    ],
)
def test_a_bad_document_is_kept_out_and_the_reason_is_told(
    watcher: ConfigWatcher, content: str, changes: dict[str, object], reason: str
) -> None:
    live = LiveSettings(OrderSettings, NAME, watcher)
    publish(watcher, document("max_lines: 5"))
    publish(watcher, document(content, version=2, **changes))
    assert (live.current.max_lines, live.version) == (5, 1)
    assert reason in (live.last_error or "")
    publish(watcher, document("max_lines: 7", version=3))
    assert (live.current.max_lines, live.version, live.last_error) == (7, 3, None)


@pytest.mark.parametrize(
    ("content", "format_"), [('{"max_lines": 3}', "json"), ("max_lines = 3", "toml"), ("max_lines: 3", "yaml")]
)
def test_settings_come_from_yaml_json_and_toml(watcher: ConfigWatcher, content: str, format_: str) -> None:
    live = LiveSettings(OrderSettings, NAME, watcher)
    publish(watcher, document(content, format=format_))
    assert live.current.max_lines == 3


@pytest.mark.parametrize("format_", ["yaml", "json", "toml"])
def test_an_empty_document_means_the_defaults(watcher: ConfigWatcher, format_: str) -> None:
    live = LiveSettings(OrderSettings, NAME, watcher)
    publish(watcher, document("", format=format_))
    assert (live.current, live.version) == (OrderSettings(), 1)


def test_a_deleted_document_means_the_defaults_again(watcher: ConfigWatcher) -> None:
    live = LiveSettings(OrderSettings, NAME, watcher)
    publish(watcher, document("max_lines: 5"))
    publish(watcher, document("", version=2, deleted=True))
    assert (live.current, live.version) == (OrderSettings(), 0)


def test_a_subscriber_that_fails_disturbs_nobody_else(watcher: ConfigWatcher) -> None:
    live = LiveSettings(OrderSettings, NAME, watcher)
    told: list[int] = []

    def fail(_old: OrderSettings, _new: OrderSettings) -> None:
        raise RuntimeError("a defect in the service's own code")

    live.subscribe(fail)
    live.subscribe(lambda _, new: told.append(new.max_lines))
    publish(watcher, document("max_lines: 5"))
    assert told == [5]


def test_settings_begin_with_what_the_watcher_knows_already(watcher: ConfigWatcher) -> None:
    snapshot = ConfigSnapshot(revision=11, documents=[document("max_lines: 5")])
    watcher.apply(StreamEvent("snapshot", 11, snapshot.model_dump_json()))
    assert LiveSettings(OrderSettings, NAME, watcher).current.max_lines == 5


def test_a_model_without_complete_defaults_is_refused_naming_the_field(watcher: ConfigWatcher) -> None:
    class Incomplete(BaseModel):
        url: str

    with pytest.raises(SettingsError, match="url"):
        LiveSettings(Incomplete, NAME, watcher)


@pytest.mark.parametrize("name", ["settings.yaml", "a/b/c"])
def test_a_name_without_group_and_key_is_refused(watcher: ConfigWatcher, name: str) -> None:
    with pytest.raises(SettingsError, match="group/key"):
        LiveSettings(OrderSettings, name, watcher)


def test_a_snapshot_takes_away_documents_that_are_gone(watcher: ConfigWatcher) -> None:
    publish(watcher, document("max_lines: 5"))
    told: list[set[str]] = []
    watcher.subscribe(told.append)
    watcher.apply(StreamEvent("snapshot", 20, ConfigSnapshot(revision=20, documents=[]).model_dump_json()))
    assert (dict(watcher.documents), told, watcher.revision) == ({}, [{NAME}], 20)
