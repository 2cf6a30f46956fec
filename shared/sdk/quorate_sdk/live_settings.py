"""Live settings: a Pydantic model whose values follow a document of the config center.

A document that cannot be parsed, or that the model refuses, changes nothing: the settings in force stay, and
`last_error` says what was wrong.
"""

import json
import tomllib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from quorate_core.errors import SettingsError

from quorate_sdk.config_watcher import ConfigWatcher
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.subscribers import Subscribers
from quorate_sdk.wire import ConfigDocument, ConfigFormat

ModelT = TypeVar("ModelT", bound=BaseModel)

log = ForkSafeLogger(__name__)


class LiveSettings(Generic[ModelT]):
    """`current` is always a valid model: the document's, or the model's defaults while there is no document.

    `version` and `revision` are those of the document in force (0: the defaults).
    """

    def __init__(self, model: type[ModelT], name: str, watcher: ConfigWatcher) -> None:
        """`name` is the document's `group/key`. Raises SettingsError when the model has no complete defaults."""
        if name.count("/") != 1:
            raise SettingsError(f"{name!r} names no document; write group/key, such as order/settings.yaml")
        self.name = name
        self._model = model
        self._watcher = watcher
        self._subscribers: Subscribers[ModelT, ModelT] = Subscribers(name)
        try:
            self.current: ModelT = model()
        except ValidationError as error:
            missing = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
            raise SettingsError(
                f"{model.__name__} needs a default for each field, to start without {name}: {missing}"
            ) from error
        self.version = 0
        self.revision = 0
        self.last_error: str | None = None
        watcher.add_key(name)
        watcher.subscribe(self._on_change)
        self._take()

    def subscribe(self, callback: Callable[[ModelT, ModelT], None]) -> Callable[[], None]:
        """Call `callback(old, new)` on the event loop when the values have changed. Returns what ends it."""
        return self._subscribers.add(callback)

    def _on_change(self, names: set[str]) -> None:
        if self.name in names:
            self._take()

    def _take(self) -> None:
        document = self._watcher.documents.get(self.name)
        try:
            new = self._model() if document is None else parse_settings(self._model, document)
        except ValueError as error:
            self.last_error = _readable(error)
            log.error(
                "live_settings_refused", document=self.name, version=document.version if document else 0,
                kept_version=self.version, error=self.last_error,
            )  # fmt: skip
            return
        old, self.current = self.current, new
        self.version = document.version if document else 0
        self.revision = document.revision if document else 0
        self.last_error = None
        if old != new:
            log.info("live_settings_changed", document=self.name, version=self.version, changed=_changed(old, new))
            self._subscribers.tell(old, new)


def parse_settings(model: type[ModelT], document: ConfigDocument) -> ModelT:
    """Raises ValueError (pydantic's ValidationError is one) for content that the model refuses. An empty document
    means the defaults."""
    try:
        content = _parse(document)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ValueError(f"settings are a mapping of names to values, and not a {type(content).__name__}")
    return model.model_validate(content)


def _parse(document: ConfigDocument) -> Any:
    match document.format:
        case ConfigFormat.YAML:
            try:
                return yaml.safe_load(document.content)
            except yaml.YAMLError as error:
                raise ValueError(f"no YAML: {error}") from error
        case ConfigFormat.JSON:
            return json.loads(document.content) if document.content.strip() else None
        case ConfigFormat.TOML:
            return tomllib.loads(document.content)
        case _:
            raise ValueError(f"live settings come from YAML, JSON or TOML, and not from {document.format.value}")


def _readable(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors())
    return str(error)


def _changed(old: BaseModel, new: BaseModel) -> list[str]:
    """Names only: values may be secret."""
    return [name for name in type(new).model_fields if getattr(old, name) != getattr(new, name)]
