"""The registry's HTTP API, as `quorate_sdk.wire` describes it."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, FastAPI, Header, Path, Query
from quorate_core.asgi import add_raw_endpoint
from quorate_core.errors import FutureRevision, InvalidRequest, QuorateError
from quorate_core.sse import EventStream
from quorate_sdk.wire import (
    DEFAULT_NAMESPACE,
    HEARTBEAT_INSTANCES_MAX,
    KEY_PATTERN,
    NAME_PATTERN,
    WAIT_S_MAX,
    Deregistered,
    Heartbeat,
    HeartbeatResult,
    Instance,
    InstancePatch,
    InstanceSpec,
    ServiceInstances,
    ServiceList,
)
from starlette.responses import Response

from quorate_registry.catalog import Catalog
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import InstanceName, encode_view
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
        instance = "/{namespace}/services/{service}/instances/{id}"
        new: dict[int | str, dict[str, Any]] = {
            201: {"model": Instance, "description": "Registered; 200 when it was there before"}
        }
        router.put(instance, response_model=Instance, responses=new)(self.register)
        router.patch(instance, response_model=Instance)(self.patch)
        router.get(instance, response_model=Instance)(self.get)
        router.delete(instance, response_model=Deregistered)(self.deregister)
        router.get("/{namespace}/services", response_model=ServiceList)(self.list_services)
        router.get("/{namespace}/services/{service}", response_model=ServiceInstances)(self.list_instances)
        stream: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
        router.get("/{namespace}/watch", response_class=Response, responses=stream)(self.watch)
        api.include_router(router)
        add_raw_endpoint(
            api, PREFIX + "/heartbeat", self.heartbeat, "Renew many instances; names those it does not know",
            _operation(Heartbeat.model_json_schema(), HeartbeatResult.model_json_schema()),
        )  # fmt: skip

    async def register(self, namespace: NamePath, service: NamePath, id: KeyPath, spec: InstanceSpec) -> Response:  # noqa: A002 - the API's name
        """Register an instance. It is gone `ttl_s` seconds after its last heartbeat."""
        view, is_new = await self._registrar.register(InstanceName(namespace, service, id), spec)
        return _json(encode_view(view), 201 if is_new else 200)

    async def patch(self, namespace: NamePath, service: NamePath, id: KeyPath, patch: InstancePatch) -> Response:  # noqa: A002
        """Change weight, status or metadata of an instance."""
        return _json(encode_view(await self._registrar.patch(InstanceName(namespace, service, id), patch)))

    async def get(self, namespace: NamePath, service: NamePath, id: KeyPath) -> Response:  # noqa: A002
        """One instance, linearizable."""
        return _json(encode_view(await self._registrar.get(InstanceName(namespace, service, id))))

    async def deregister(self, namespace: NamePath, service: NamePath, id: KeyPath) -> Deregistered:  # noqa: A002
        """Remove an instance at once."""
        return Deregistered(revision=await self._registrar.deregister(InstanceName(namespace, service, id)))

    async def list_services(self, namespace: NamePath, consistency: Consistency = "linearizable") -> Response:
        """Services with at least one instance."""
        await self._catch_up(consistency)
        return _json(self._catalog.services_body(namespace))

    async def list_instances(
        self,
        namespace: NamePath,
        service: NamePath,
        consistency: Consistency = "linearizable",
        min_revision: Revision = None,
        wait: Annotated[float, Query(ge=0, le=WAIT_S_MAX, description="Seconds")] = 0.0,
    ) -> Response:
        """The instances of a service; none for a service that nobody has registered.

        With `min_revision` alone, the answer is at least that fresh. With `wait` too, it is a blocking query: it
        comes as soon as the service has changed at `min_revision` or after it, or when the time is over. Ask with
        the revision of the last answer plus one.
        """
        await self._catch_up(consistency)
        if min_revision is not None and wait > 0:
            await self._until_changed(namespace, service, min_revision, wait)
        elif min_revision is not None and min_revision > self._catalog.revision:
            await self._feed.barrier()
            if min_revision > self._catalog.revision:
                raise FutureRevision(f"min_revision={min_revision} is ahead of the store, at {self._catalog.revision}")
        return _json(self._catalog.list_body(namespace, service))

    async def watch(
        self,
        namespace: NamePath,
        service: Annotated[
            list[Annotated[str, Query(pattern=NAME_PATTERN)]], Query(max_length=WATCHED_SERVICES_MAX)
        ] = [],  # noqa: B006 - FastAPI copies it
        revision: Revision = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> EventStream:
        """Server-Sent Events: snapshot, delta, bookmark; resumes by `Last-Event-ID` or `revision`."""
        resume = revision if last_event_id is None else _parsed_revision(last_event_id)
        self._subscriptions.require_room()
        resume = await self._resume_revision(resume)
        services = frozenset(service) or None
        events = watch_events(self._catalog, self._subscriptions, namespace, services, resume)
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
        with self._subscriptions.subscribed(namespace, frozenset({service})) as subscription:
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


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _operation(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    return {
        "tags": ["registry"],
        "requestBody": {"required": True, **content(request)},
        "responses": {"200": {"description": "Renewed", **content(answer)}},
    }
