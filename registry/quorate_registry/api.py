"""The registry's HTTP API, as `quorate_sdk.wire` describes it."""

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, FastAPI, Header, Path, Query, Request
from quorate_core.asgi import add_direct_gets, add_raw_endpoint
from quorate_core.errors import FutureRevision, InvalidRequest, NotFound, QuorateError
from quorate_core.sse import EventStream
from quorate_sdk.wire import (
    AUTHOR_CHARS_MAX,
    DEFAULT_NAMESPACE,
    HEARTBEAT_INSTANCES_MAX,
    KEY_PATTERN,
    NAME_PATTERN,
    SUBSCRIBER_PATTERN,
    WAIT_S_MAX,
    Deregistered,
    Heartbeat,
    HeartbeatResult,
    Instance,
    InstancePatch,
    InstanceSpec,
    InstanceStatus,
    NamespaceList,
    ServiceInstances,
    ServiceList,
    ServiceSettings,
)
from starlette.responses import Response

from quorate_registry.catalog import Catalog, Filters, Interest
from quorate_registry.checks.addresses import refused_host
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import DEFAULT_SETTINGS, InstanceName, InstanceView, ServiceName, encode_view
from quorate_registry.plain_lists import plain_lists
from quorate_registry.registrar import Registrar
from quorate_registry.watch import Subscriptions, watch_events

PREFIX = "/v1/registry"
WATCHED_SERVICES_MAX = 256
SNAPSHOT_FRESHNESS_WAIT_S = 1.0
"""A watch's snapshot waits so long for a linearizable read; after it a stale one is better than none."""

NamePath = Annotated[str, Path(pattern=NAME_PATTERN)]
KeyPath = Annotated[str, Path(pattern=KEY_PATTERN)]
Consistency = Literal["linearizable", "stale"]
Revision = Annotated[int | None, Query(ge=0)]
FILTER_VALUES_MAX = 64
FilterValues = Annotated[list[Annotated[str, Query(max_length=128)]], Query(max_length=FILTER_VALUES_MAX)]
WatchedNames = Annotated[list[Annotated[str, Query(pattern=NAME_PATTERN)]], Query(max_length=WATCHED_SERVICES_MAX)]
Author = Annotated[str | None, Header(alias="Quorate-Author", max_length=AUTHOR_CHARS_MAX)]
REVISION_HEADER = "Quorate-Revision"
GZIP_BYTES_MIN = 1_024
_ZERO_WEIGHT = re.compile(r"q\s*=\s*0(\.0{0,3})?")


class _Reference(msgspec.Struct, forbid_unknown_fields=True):
    service: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    id: Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]
    namespace: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)] = DEFAULT_NAMESPACE


class _Heartbeat(msgspec.Struct, forbid_unknown_fields=True):
    instances: Annotated[list[_Reference], msgspec.Meta(max_length=HEARTBEAT_INSTANCES_MAX)]


_heartbeat_decoder = msgspec.json.Decoder(_Heartbeat)
_encode = msgspec.json.Encoder().encode


class RegistryApi:
    """The endpoints; `stopping` ends streams and blocking queries."""

    def __init__(
        self,
        registrar: Registrar,
        catalog: Catalog,
        feed: CatalogFeed,
        subscriptions: Subscriptions,
        stopping: asyncio.Event,
    ) -> None:
        self._registrar = registrar
        self._catalog = catalog
        self._feed = feed
        self._subscriptions = subscriptions
        self._stopping = stopping

    def mount(self, api: FastAPI) -> None:
        router = APIRouter(prefix=PREFIX, tags=["registry"])
        services = "/{namespace}/services"
        instance = services + "/{service}/instances/{id}"
        settings = services + "/{service}/settings"
        new: dict[int | str, dict[str, Any]] = {
            201: {"model": Instance, "description": "Registered; 200 when it was there before"}
        }
        unchanged: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing has changed since that ETag"}}
        router.get("/namespaces", response_model=NamespaceList)(self.list_namespaces)
        router.put(instance, response_model=Instance, responses=new)(self.register)
        router.patch(instance, response_model=Instance)(self.patch)
        router.get(instance, response_model=Instance)(self.get)
        router.delete(instance, response_model=Deregistered)(self.deregister)
        router.get(services, response_model=ServiceList)(self.list_services)
        router.get(services + "/{service}", response_model=ServiceInstances, responses=unchanged)(self.list_instances)
        router.get(settings, response_model=ServiceSettings)(self.get_settings)
        router.put(settings, response_model=ServiceSettings)(self.put_settings)
        router.delete(settings, response_model=ServiceSettings)(self.delete_settings)
        stream: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
        router.get("/{namespace}/watch", response_class=Response, responses=stream)(self.watch)
        api.include_router(router)
        add_direct_gets(api, plain_lists(self.list_instances))
        add_raw_endpoint(
            api, PREFIX + "/heartbeat", self.heartbeat, "Renew many instances; names those it does not know",
            _operation(Heartbeat.model_json_schema(), HeartbeatResult.model_json_schema()),
        )  # fmt: skip

    async def register(
        self,
        request: Request,
        namespace: NamePath,
        service: NamePath,
        id: KeyPath,  # noqa: A002 - the API's name
        spec: InstanceSpec,
        author: Author = None,
    ) -> Response:
        """Register an instance. An ephemeral one has lapsed `ttl_s` seconds after its last heartbeat."""
        name = InstanceName(namespace, service, id)
        if not spec.ephemeral and (reason := refused_host(spec.host)) is not None:
            raise InvalidRequest(f"host: {reason}")
        view, is_new = await self._registrar.register(name, spec, who(request, author))
        return _instance(view, 201 if is_new else 200)

    async def patch(
        self,
        request: Request,
        namespace: NamePath,
        service: NamePath,
        id: KeyPath,  # noqa: A002
        patch: InstancePatch,
        author: Author = None,
    ) -> Response:
        """Change weight, status, tags or metadata of an instance."""
        name = InstanceName(namespace, service, id)
        return _instance(await self._registrar.patch(name, patch, who(request, author)))

    async def get(
        self,
        namespace: NamePath,
        service: NamePath,
        id: KeyPath,  # noqa: A002
        consistency: Consistency = "linearizable",
    ) -> Response:
        """One instance, if it is shown."""
        await self._catch_up(consistency)
        name = InstanceName(namespace, service, id)
        entry = self._catalog.entry(name)
        if entry is None or not self._catalog.is_shown(name):
            raise NotFound(f"there is no {name}")
        return _json(entry.encoded, self._catalog.revision)

    async def deregister(
        self,
        request: Request,
        namespace: NamePath,
        service: NamePath,
        id: KeyPath,  # noqa: A002
        author: Author = None,
    ) -> Response:
        """Remove an instance at once."""
        name = InstanceName(namespace, service, id)
        revision = await self._registrar.deregister(name, who(request, author))
        return _json(_encode({"revision": revision}), revision)

    async def list_namespaces(self, consistency: Consistency = "linearizable") -> Response:
        """Namespaces with at least one instance."""
        await self._catch_up(consistency)
        return _json(self._catalog.namespaces_body(), self._catalog.revision)

    async def list_services(self, namespace: NamePath, consistency: Consistency = "linearizable") -> Response:
        """Services with at least one instance."""
        await self._catch_up(consistency)
        return _json(self._catalog.services_body(namespace), self._catalog.revision)

    async def list_instances(
        self,
        namespace: NamePath,
        service: NamePath,
        consistency: Consistency = "linearizable",
        min_revision: Revision = None,
        wait: Annotated[float, Query(ge=0, le=WAIT_S_MAX, description="Seconds")] = 0.0,
        status: Annotated[list[InstanceStatus], Query(max_length=FILTER_VALUES_MAX)] = [],  # noqa: B006 - FastAPI copies
        zone: FilterValues = [],  # noqa: B006
        version: FilterValues = [],  # noqa: B006
        tag: FilterValues = [],  # noqa: B006
        if_none_match: Annotated[str | None, Header()] = None,
        accept_encoding: Annotated[str, Header()] = "",
    ) -> Response:
        """The instances of a service; none for a service that nobody has registered.

        With `min_revision` alone, the answer is at least that fresh. With `wait` too, it is a blocking query: it
        comes as soon as the service has changed at `min_revision` or after it, or when the time is over. Ask with
        the revision of the last answer plus one.

        Filters that are given twice take either; those of several kinds must all hold. An ETag is of what is shown: the
        revision of an answer may be newer than that of another one with the same.
        """
        await self._catch_up(consistency)
        if min_revision is not None and wait > 0:
            await self._until_changed(namespace, service, min_revision, wait)
        elif min_revision is not None and min_revision > self._catalog.revision:
            await self._feed.barrier()
            if min_revision > self._catalog.revision:
                raise FutureRevision(f"min_revision={min_revision} is ahead of the store, at {self._catalog.revision}")
        if status or zone or version or tag:
            filters = Filters(*(frozenset(values) for values in (status, zone, version, tag)))
            return _json(self._catalog.list_body(namespace, service, filters), self._catalog.revision)
        return self._whole_list(namespace, service, if_none_match, accept_encoding)

    def _whole_list(self, namespace: str, service: str, if_none_match: str | None, accept_encoding: str) -> Response:
        catalog = self._catalog
        etag = catalog.etag(namespace, service)
        headers = {"ETag": etag, "Vary": "Accept-Encoding"}
        if if_none_match is not None and etag in if_none_match:
            return Response(None, 304, {**headers, REVISION_HEADER: str(catalog.revision)})
        body = catalog.list_body(namespace, service)
        if len(body) >= GZIP_BYTES_MIN and _takes_gzip(accept_encoding):
            body, headers["Content-Encoding"] = catalog.gzipped_list_body(namespace, service), "gzip"
        return _json(body, catalog.revision, headers=headers)

    async def get_settings(self, namespace: NamePath, service: NamePath) -> ServiceSettings:
        """How a service is protected and checked; the defaults when nobody has said so."""
        return await self._registrar.settings(ServiceName(namespace, service))

    async def put_settings(
        self,
        request: Request,
        namespace: NamePath,
        service: NamePath,
        settings: ServiceSettings,
        author: Author = None,
    ) -> ServiceSettings:
        """Replace the settings of a service, which may have no instances yet."""
        await self._registrar.set_settings(ServiceName(namespace, service), settings, who(request, author))
        return settings

    async def delete_settings(self, namespace: NamePath, service: NamePath) -> ServiceSettings:
        """Back to the defaults."""
        await self._registrar.reset_settings(ServiceName(namespace, service))
        return DEFAULT_SETTINGS

    async def watch(
        self,
        request: Request,
        namespace: NamePath,
        service: WatchedNames = [],  # noqa: B006
        prefix: WatchedNames = [],  # noqa: B006
        subscriber: Annotated[str, Query(pattern=f"^$|{SUBSCRIBER_PATTERN}")] = "",
        revision: Revision = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> EventStream:
        """Server-Sent Events: snapshot, delta, bookmark; resumes by `Last-Event-ID` or `revision`."""
        resume = revision if last_event_id is None else _parsed_revision(last_event_id)
        self._subscriptions.require_room()
        resume = await self._resume_revision(resume)
        services = frozenset(service) if service or prefix else None
        interest = Interest(namespace, services, tuple(sorted(set(prefix))))
        events = watch_events(self._catalog, self._subscriptions, interest, resume, subscriber, _peer(request))
        return EventStream(events, self._stopping)

    async def heartbeat(self, body: bytes) -> bytes:
        """Renew the instances named in the body, in one step; JSON in, JSON out."""
        try:
            heartbeat = _heartbeat_decoder.decode(body)
        except msgspec.DecodeError as error:  # its subclass ValidationError says which field
            raise InvalidRequest(f"heartbeat: {error}") from error
        self._feed.require_loaded()
        names = [InstanceName(item.namespace, item.service, item.id) for item in heartbeat.instances]
        renewed, unknown = await self._registrar.renew(list(dict.fromkeys(names)))
        return _encode({"renewed": renewed, "unknown": [name._asdict() for name in unknown]})

    async def _catch_up(self, consistency: Consistency) -> None:
        self._feed.require_loaded()
        if consistency == "linearizable":
            await self._feed.barrier()

    async def _until_changed(self, namespace: str, service: str, min_revision: int, wait_s: float) -> None:
        """A queue like a watcher's, woken by this service alone."""
        interest = Interest(namespace, frozenset({service}))
        with self._subscriptions.subscribed(interest, is_stream=False) as subscription:
            try:
                async with asyncio.timeout(wait_s), asyncio.TaskGroup() as group:
                    stopping = group.create_task(self._stopping.wait())
                    while not stopping.done() and self._catalog.changed_revision(namespace, service) < min_revision:
                        subscription.clear()
                        changed = group.create_task(subscription.wait())
                        await asyncio.wait({changed, stopping}, return_when=asyncio.FIRST_COMPLETED)
                        changed.cancel()
                    stopping.cancel()
            except TimeoutError:
                pass  # then the answer is what there is

    async def _resume_revision(self, revision: int | None) -> int | None:
        """Where a watch goes on; None for a snapshot. Raises the store's error rather than give a watcher less than
        it has."""
        self._feed.require_loaded()
        if revision is None:
            try:
                async with asyncio.timeout(SNAPSHOT_FRESHNESS_WAIT_S):
                    await self._feed.barrier()
            except (QuorateError, TimeoutError):
                pass  # this node's copy is what there is, and its revision says how fresh it is
            return None
        if revision > self._catalog.revision:
            await self._feed.barrier()
        # Still ahead of the store: a revision of another history, such as before the data was reset.
        return revision if revision <= self._catalog.revision else None


def _parsed_revision(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise InvalidRequest(f"Last-Event-ID: {text[:40]!r} is no revision")
    return int(text)


def _instance(view: InstanceView, status: int = 200) -> Response:
    return _json(encode_view(view), view.revision, status)


def _json(body: bytes, revision: int, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    found = {**(headers or {}), REVISION_HEADER: str(revision)}
    return Response(body, status, found, media_type="application/json")


def who(request: Request, author: str | None) -> str:
    """What they say of themselves, or else where they are. Raises InvalidRequest for what would disturb a terminal."""
    if author is not None and not author.isprintable():
        raise InvalidRequest("Quorate-Author: a name is printable text")
    return author or _peer(request)


def _peer(request: Request) -> str:
    return "" if request.client is None else f"{request.client.host}:{request.client.port}"


def _takes_gzip(accept_encoding: str) -> bool:
    """RFC 9110 section 12.5.3, as far as gzip is concerned."""
    for coding in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in coding.split(";"))
        if name == "gzip":
            return not any(_ZERO_WEIGHT.fullmatch(parameter) for parameter in parameters)
    return False


def _operation(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    return {
        "tags": ["registry"],
        "requestBody": {"required": True, **content(request)},
        "responses": {"200": {"description": "Renewed", **content(answer)}},
    }
