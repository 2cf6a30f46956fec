"""The config center's HTTP API, under `/v1/config`. `quorate_sdk.wire` has its models and the table of its calls."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request
from quorate_core.clock import Clock
from quorate_core.errors import InvalidRequest, NotFound
from quorate_core.sse import EventStream
from quorate_sdk.wire import (
    CONTENT_BYTES_MAX,
    KEY_PATTERN,
    NAME_PATTERN,
    ConfigDocument,
    ConfigFormat,
    ConfigHistory,
    ConfigList,
    ConfigMetadata,
    Rollback,
)
from starlette.responses import Response

from quorate_config_center.checks import ContentChecker, decode_content
from quorate_config_center.feed import KEYS_PER_SUBSCRIBER_MAX, Feed, Interest
from quorate_config_center.formats import format_of_key
from quorate_config_center.history import DocumentHistory, Outcome
from quorate_config_center.model import (
    Change,
    DocumentName,
    Precondition,
    StoredHead,
    StoredVersion,
    document,
    metadata,
)

PREFIX = "/v1/config"
AUTHOR_CHARS_MAX = 128
COMMENT_CHARS_MAX = 1_024
HISTORY_LIMIT_MAX = 1_000
REVISION_DIGITS_MAX = 18

NamePath = Annotated[str, Path(pattern=NAME_PATTERN)]
KeyPath = Annotated[str, Path(pattern=KEY_PATTERN)]
Author = Annotated[str, Query(max_length=AUTHOR_CHARS_MAX)]
Comment = Annotated[str, Query(max_length=COMMENT_CHARS_MAX)]
Consistency = Literal["linearizable", "stale"]
ConditionHeader = Annotated[str | None, Header()]

_MEDIA_TYPES = {
    ConfigFormat.YAML: "application/yaml",
    ConfigFormat.JSON: "application/json",
    ConfigFormat.TOML: "application/toml",
    ConfigFormat.PROPERTIES: "text/plain",
    ConfigFormat.TEXT: "text/plain",
}
_CREATED: dict[int | str, dict[str, Any]] = {
    201: {"model": ConfigMetadata, "description": "The document is new; 200 when it was there before"}
}
_DOCUMENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The document; with `raw` its content, in the type of its format",
        "content": {
            kind: {"schema": {"type": "string"}} for kind in sorted({*_MEDIA_TYPES.values()} - {"application/json"})
        },
    },
    304: {"description": "What `If-None-Match` names is the newest"},
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-Sent Events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
_CONTENT_BODY = {
    "requestBody": {
        "required": True,
        "description": f"The content itself, UTF-8, at most {CONTENT_BYTES_MAX} bytes",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


class ConfigApi:
    """The endpoints; `stopping` ends streams. Times are shown by `clock`'s wall."""

    def __init__(
        self, history: DocumentHistory, feed: Feed, checker: ContentChecker, clock: Clock, stopping: asyncio.Event
    ) -> None:
        self._history = history
        self._feed = feed
        self._checker = checker
        self._clock = clock
        self._stopping = stopping

    def mount(self, api: FastAPI) -> None:
        router = APIRouter(prefix=PREFIX, tags=["config"])
        named = "/{namespace}/{group}/{key}"
        router.get("/{namespace}", response_model=ConfigList)(self.list_documents)
        router.get("/{namespace}/watch", response_class=Response, responses=_EVENTS)(self.watch)
        router.put(named, response_model=ConfigMetadata, responses=_CREATED, openapi_extra=_CONTENT_BODY)(self.publish)
        router.get(named, response_model=ConfigDocument, responses=_DOCUMENT)(self.get)
        router.delete(named, response_model=ConfigMetadata)(self.delete)
        router.get(named + "/history", response_model=ConfigHistory)(self.list_versions)
        router.post(named + "/rollback", response_model=ConfigMetadata, responses=_CREATED)(self.roll_back)
        api.include_router(router)

    async def publish(
        self,
        request: Request,
        namespace: NamePath,
        group: NamePath,
        key: KeyPath,
        content_format: Annotated[ConfigFormat | None, Query(alias="format")] = None,
        author: Author = "",
        comment: Comment = "",
        if_match: ConditionHeader = None,
        if_none_match: ConditionHeader = None,
    ) -> Response:
        """Publish the body as the document's newest version; the same content again makes no new version.

        `If-Match: "7"` publishes only over version 7, `If-None-Match: *` only a document that is not there. The
        format is that of `format`, else of the key's extension, else text.
        """
        name = DocumentName(namespace, group, key)
        required = Precondition.from_headers(if_match, if_none_match)
        content = decode_content(await request.body())
        chosen = content_format or format_of_key(key)
        await self._checker.require_valid(name, chosen, content)
        outcome = await self._history.publish(name, content, chosen, self._change(author, comment), required)
        return _outcome_answer(name, outcome)

    async def get(
        self,
        namespace: NamePath,
        group: NamePath,
        key: KeyPath,
        version: Annotated[int | None, Query(ge=1, lt=10**REVISION_DIGITS_MAX)] = None,
        raw: bool = False,
        consistency: Consistency = "linearizable",
        if_none_match: ConditionHeader = None,
    ) -> Response:
        """The document, or one of its kept versions; with `raw` its content alone.

        `consistency=stale` answers from this node's memory, also when the store has no leader.
        """
        name = DocumentName(namespace, group, key)
        found = await self._read(name, version, consistency)
        tag = _entity_tag(found.head.version)
        if if_none_match is not None and tag in (offered.strip() for offered in if_none_match.split(",")):
            return Response(status_code=304, headers={"etag": tag})
        if raw:
            if found.head.deleted:
                raise NotFound(f"version {found.head.version} of {name} is a deletion")
            media_type = _MEDIA_TYPES[found.head.format]
            headers = {"etag": tag, "x-content-type-options": "nosniff"}
            return Response(found.content, headers=headers, media_type=media_type)
        return _json(document(name, found), tag=tag)

    async def delete(
        self,
        namespace: NamePath,
        group: NamePath,
        key: KeyPath,
        author: Author = "",
        comment: Comment = "",
        if_match: ConditionHeader = None,
    ) -> Response:
        """Delete the document. The deletion is a version too: history stays, and version numbers go on after it."""
        name = DocumentName(namespace, group, key)
        required = Precondition.from_headers(if_match, None)
        outcome = await self._history.delete(name, self._change(author, comment), required)
        return _json(metadata(name, outcome.stored))

    async def list_versions(
        self,
        namespace: NamePath,
        group: NamePath,
        key: KeyPath,
        limit: Annotated[int, Query(ge=1, le=HISTORY_LIMIT_MAX)] = 20,
    ) -> Response:
        """The newest versions that are kept, newest first, deletions included."""
        name = DocumentName(namespace, group, key)
        found = await self._history.versions(name, limit)
        return _json(ConfigHistory(versions=[metadata(name, stored) for stored in found]))

    async def roll_back(
        self, namespace: NamePath, group: NamePath, key: KeyPath, rollback: Rollback, if_match: ConditionHeader = None
    ) -> Response:
        """Publish the content of an earlier version again, as a new version, checked as any other."""
        name = DocumentName(namespace, group, key)
        if len(rollback.author) > AUTHOR_CHARS_MAX or len(rollback.comment) > COMMENT_CHARS_MAX:
            raise InvalidRequest(f"author takes up to {AUTHOR_CHARS_MAX} characters, comment up to {COMMENT_CHARS_MAX}")
        restored = await self._history.content_to_restore(name, rollback.version)
        await self._checker.require_valid(name, restored.head.format, restored.content)
        outcome = await self._history.publish(
            name, restored.content, restored.head.format,
            self._change(rollback.author, rollback.comment or f"rollback to version {rollback.version}"),
            Precondition.from_headers(if_match, None),
        )  # fmt: skip
        return _outcome_answer(name, outcome)

    async def list_documents(
        self,
        namespace: NamePath,
        group: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
        consistency: Consistency = "linearizable",
    ) -> Response:
        """The documents of a namespace, or of one of its groups, without their content."""
        if consistency == "stale" and self._feed.revision:
            revision = self._feed.revision
            held = [item for item in self._feed.listed(namespace) if group in (None, item.name.group)]
            found = [(item.name, StoredHead(item.head, item.revision)) for item in held]
        else:
            serializable = consistency == "stale"
            revision, found = await self._history.listed(namespace, group, serializable=serializable)
        documents = [metadata(name, stored) for name, stored in found]
        return _json(ConfigList(namespace=namespace, revision=revision, documents=documents))

    async def watch(
        self,
        namespace: NamePath,
        key: Annotated[list[str], Query(description="group/key", max_length=KEYS_PER_SUBSCRIBER_MAX)] = [],  # noqa: B006 - FastAPI copies it
        revision: Annotated[int, Query(ge=0, lt=10**REVISION_DIGITS_MAX)] = 0,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> EventStream:
        """Server-Sent Events: snapshot, delta, bookmark; resumes by `Last-Event-ID` or `revision`."""
        names = frozenset(_watched_name(namespace, text) for text in key) if key else None
        since = revision if last_event_id is None else _revision_of(last_event_id)
        self._feed.require_room()
        if since > self._feed.revision and since > await self._history.present_revision():
            since = 0  # from another store's life: nothing of what the client has can be relied on
        events = self._feed.events(Interest(namespace, names), since)
        return EventStream(events, self._stopping)

    async def _read(self, name: DocumentName, version: int | None, consistency: Consistency) -> StoredVersion:
        if version is not None:
            return await self._history.read_version(name, version, serializable=consistency == "stale")
        if consistency == "linearizable" or not self._feed.revision:
            return await self._history.read(name, serializable=consistency == "stale")
        held = self._feed.find(name)
        if held is None or held.head.deleted:
            raise NotFound(f"there is no document {name}")
        return held.stored

    def _change(self, author: str, comment: str) -> Change:
        moment = datetime.fromtimestamp(self._clock.wall_s(), UTC)
        return Change(author, comment, moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"))


def _watched_name(namespace: str, text: str) -> DocumentName:
    try:
        return DocumentName.parse(namespace, text)
    except ValueError as error:
        raise InvalidRequest(f"key={text!r} names no document; write it as group/key") from error


def _revision_of(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= REVISION_DIGITS_MAX):
        raise InvalidRequest(f"Last-Event-ID {text[:40]!r} is no revision")
    return int(text)


def _entity_tag(version: int) -> str:
    return f'"{version}"'


def _outcome_answer(name: DocumentName, outcome: Outcome) -> Response:
    tag = _entity_tag(outcome.stored.head.version)
    return _json(metadata(name, outcome.stored), 201 if outcome.created else 200, tag)


def _json(body: ConfigMetadata | ConfigHistory | ConfigList, status: int = 200, tag: str | None = None) -> Response:
    headers = {} if tag is None else {"etag": tag}
    return Response(body.model_dump_json(), status, headers, "application/json")
