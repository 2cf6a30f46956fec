"""The config center as an app of a node: `quorate_store.apps.App`."""

from fastapi import FastAPI
from quorate_core.errors import InvariantViolation
from quorate_store.apps import AppContext
from quorate_store.chronicle import Bound, ChangesPart

from quorate_config_center.api import ConfigApi
from quorate_config_center.checks import ContentChecker, installed_validators
from quorate_config_center.feed import Feed
from quorate_config_center.follow import FeedFollower
from quorate_config_center.history import DocumentHistory
from quorate_config_center.settings import ConfigCenterSettings
from quorate_config_center.timeline import DocumentTimeline


class ConfigCenterApp:
    """`settings`: those of the environment when not given. Raises SettingsError for a bad one."""

    name = "config-center"

    def __init__(self, settings: ConfigCenterSettings | None = None) -> None:
        self._settings = settings or ConfigCenterSettings.from_environment()
        self._feed = Feed()
        self._api: ConfigApi | None = None
        self._timeline: DocumentTimeline | None = None

    async def start(self, context: AppContext) -> None:
        """Begin to load the documents; does not wait for the store."""
        history = DocumentHistory(context.store, self._settings.versions_kept)
        follower = FeedFollower(context.store, history, self._feed)
        checker = ContentChecker(installed_validators())
        self._api = ConfigApi(history, self._feed, checker, context.clock, context.stopping)
        self._timeline = DocumentTimeline(context.store)
        context.tasks.start(follower.run(), "config-feed")
        context.tasks.start(follower.send_bookmarks(), "config-bookmarks")

    def mount(self, api: FastAPI) -> None:
        if self._api is None:
            raise InvariantViolation("the config center was mounted before it was started")
        self._api.mount(api)

    def ready(self) -> str | None:
        return None if self._feed.revision else "the config center is reading its documents from the store"

    async def changes(self, since: Bound, until: Bound, limit: int) -> ChangesPart:
        """See `quorate_store.chronicle.Chronicler`."""
        if self._timeline is None:
            raise InvariantViolation("the config center was asked for its changes before it was started")
        return await self._timeline.changes(since, until, limit)

    async def stop(self) -> None:
        """Its tasks are the node's, which ends them; nothing else is held."""
