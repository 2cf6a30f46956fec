"""The HTTP API's models: one definition, used by the servers that answer and the clients that ask.

Registry, under `/v1/registry`:

    PUT    /{namespace}/services/{service}/instances/{id}   InstanceSpec -> Instance (201 new, 200 replaced)
    PATCH  /{namespace}/services/{service}/instances/{id}   InstancePatch -> Instance
    GET    /{namespace}/services/{service}/instances/{id}   -> Instance
    DELETE /{namespace}/services/{service}/instances/{id}   -> Deregistered
    POST   /heartbeat                                       Heartbeat -> HeartbeatResult
    GET    /{namespace}/services                            -> ServiceList
    GET    /{namespace}/services/{service}                  -> ServiceInstances; ETag, gzip
             ?consistency=linearizable|stale  ?min_revision=N&wait=SECONDS (blocking query)
             ?status=&zone=&version=&tag= (repeatable: any of these)
    GET    /{namespace}/services/{service}/settings         -> ServiceSettings (the defaults when none are set)
    PUT    /{namespace}/services/{service}/settings         ServiceSettings -> ServiceSettings
    DELETE /{namespace}/services/{service}/settings         -> ServiceSettings (the defaults)
    POST   /{namespace}/services/{service}/instances/{id}/drain?wait=SECONDS  -> Drained
    GET    /namespaces                                      -> NamespaceList
    POST   /acks                                            Acknowledgement
    GET    /{namespace}/watch?service=a&prefix=b            -> Server-Sent Events (neither: all of them)
             resumes by the `Last-Event-ID` header or ?revision=N; ?subscriber=NAME: who is to acknowledge

Whoever writes may say who it is by the header `Quorate-Author`: a claim, and no proof. Answers of the registry carry
the revision that they are of in `Quorate-Revision`.

Config center, under `/v1/config`:

    PUT    /{namespace}/{group}/{key}        the content itself as body -> ConfigMetadata (201 new, 200 changed)
             ?format=&comment=&author=, `If-Match: "<version>"` or `If-None-Match: *`
    GET    /{namespace}/{group}/{key}        -> ConfigDocument, ETag "<version>"; ?version=N; ?raw=true: content alone
    DELETE /{namespace}/{group}/{key}        -> ConfigMetadata; `If-Match`
    GET    /{namespace}/{group}/{key}/history?limit=  -> ConfigHistory, newest first
    POST   /{namespace}/{group}/{key}/rollback  Rollback -> ConfigMetadata
    GET    /{namespace}                      -> ConfigList (?group=)
    GET    /{namespace}/watch?key=group/key  -> Server-Sent Events (repeatable; resumes as above)

Server-Sent Events, in both: `id` is the store revision, `data` is JSON.

    snapshot   everything that is watched, as of the revision; replaces what the client had
    delta      the changes up to the revision, newest state of each name only
    bookmark   nothing changed for this watch up to the revision
    resync     the server gives up on this stream (`{"reason": …}`); connect again without a revision
    acknowledge  of the registry, to those with a name: say by POST /acks when everything up to the revision is in force

Cluster, under `/v1/cluster`:

    GET    /status                  -> ClusterStatus: every node, and who did not answer
    GET    /node                    -> NodeStatus: this node alone
    GET    /members                 -> MemberList: who is a member, as the leader sees it
    POST   /members                 AddMember -> MemberList (201): the new one begins as a learner
    POST   /members/{name}/promote  -> MemberList (409 with `lag_entries` while it lacks too much)
    DELETE /members/{name}          -> MemberList (409 when what is left alive would be no majority)
    POST   /transfer                Transfer -> Transferred

Requests with a field that the server does not know are refused; clients ignore fields and events that they do not know.
Errors are application/problem+json (RFC 9457) with `retry`: safe, unknown or never.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A namespace, service or group: lower-case letters, digits, `.`, `_`, `-`; at most 63 characters."""
KEY_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$"
Key = Annotated[str, StringConstraints(pattern=KEY_PATTERN)]
"""An instance id or a document's key: letters, digits, `.`, `_`, `-`; at most 128 characters."""

SUBSCRIBER_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?$"
"""Who watches, such as `gateway/gateway-1`."""
AUTHOR_CHARS_MAX = 128
TAGS_MAX = 32
METADATA_ENTRIES_MAX = 64
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=128)],
        Annotated[str, StringConstraints(max_length=1_024)],
    ],
    Field(max_length=METADATA_ENTRIES_MAX),
]

DEFAULT_NAMESPACE = "default"
TTL_S_MIN, TTL_S_DEFAULT, TTL_S_MAX = 2, 10, 86_400
HEARTBEAT_INSTANCES_MAX = 10_000
CONTENT_BYTES_MAX = 1_048_576
WAIT_S_MAX = 55.0


class _Request(BaseModel):
    """A field that the server does not know is a mistake of the caller's."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answer(BaseModel):
    """Of answers and events: fields that a later server adds are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class InstanceStatus(StrEnum):
    UP = "UP"
    STARTING = "STARTING"
    DRAINING = "DRAINING"
    OUT_OF_SERVICE = "OUT_OF_SERVICE"
    DOWN = "DOWN"


def _known_status(status: object) -> object:
    is_later = isinstance(status, str) and status not in InstanceStatus.__members__.values()
    return InstanceStatus.OUT_OF_SERVICE if is_later else status


class _Check(_Request):
    """When an instance is asked how it is, at its own address. Results in a row decide: the very first one alone, then
    `unhealthy_after` that are bad, and `healthy_after` that are good."""

    interval_s: Annotated[float, Field(strict=True, ge=1, le=3_600, allow_inf_nan=False)] = 10.0
    timeout_s: Annotated[float, Field(strict=True, ge=0.1, le=60, allow_inf_nan=False)] = 1.0
    healthy_after: Annotated[int, Field(strict=True, ge=1, le=10)] = 2
    unhealthy_after: Annotated[int, Field(strict=True, ge=1, le=10)] = 3
    port: Annotated[int, Field(strict=True, ge=1, le=65_535)] | None = None
    """Where it is asked; None: where it serves."""

    @model_validator(mode="after")
    def _ends_before_the_next(self) -> Self:
        if self.timeout_s > self.interval_s:
            raise ValueError(f"timeout_s={self.timeout_s:g} is longer than interval_s={self.interval_s:g}")
        return self


class HttpCheck(_Check):
    """Good is an answer to GET with a status of the range. Redirects are not followed."""

    type: Literal["http"]
    path: Annotated[str, StringConstraints(max_length=1_024, pattern=r"^/[\x21-\x7e]*$")] = "/"
    host: Annotated[str, StringConstraints(max_length=253, pattern=r"^[A-Za-z0-9._:\[\]-]*$")] = ""
    """The Host field; empty: the address that is asked."""
    status_min: Annotated[int, Field(strict=True, ge=100, le=599)] = 200
    status_max: Annotated[int, Field(strict=True, ge=100, le=599)] = 399


class TcpCheck(_Check):
    """Good is a connection."""

    type: Literal["tcp"]


class GrpcCheck(_Check):
    """Good is SERVING by `grpc.health.v1.Health/Check`, asked for `service`; empty: for the server as a whole."""

    type: Literal["grpc"]
    service: Annotated[str, StringConstraints(max_length=253, pattern=r"^[A-Za-z0-9._/-]*$")] = ""


HealthCheck = Annotated[HttpCheck | TcpCheck | GrpcCheck, Field(discriminator="type")]


class InstanceSpec(_Request):
    """What registers an instance. An `ephemeral` one lives by heartbeats: it has lapsed `ttl_s` seconds after the last
    one. One that is not ephemeral stays until somebody deregisters it; whether it is up its `check` says, or else the
    service's default one, or else nobody.

    `weight`: its part of what is sent to all instances; 0 takes no traffic.
    """

    host: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")]
    port: Annotated[int, Field(strict=True, ge=1, le=65_535)]
    scheme: Literal["http", "https", "grpc", "tcp"] = "http"
    """The gateway routes to http alone."""
    weight: Annotated[int, Field(strict=True, ge=0, le=1_000)] = 100
    zone: Annotated[str, StringConstraints(max_length=63)] = ""
    version: Annotated[str, StringConstraints(max_length=63)] = ""
    tags: Annotated[list[Key], Field(max_length=TAGS_MAX)] = []
    metadata: Metadata = {}
    status: InstanceStatus = InstanceStatus.UP
    ttl_s: Annotated[int, Field(strict=True, ge=TTL_S_MIN, le=TTL_S_MAX)] = TTL_S_DEFAULT
    ephemeral: Annotated[bool, Field(strict=True)] = True
    check: HealthCheck | None = None

    @model_validator(mode="after")
    def _is_checked_or_beats(self) -> Self:
        if self.ephemeral and self.check is not None:
            raise ValueError("check is for instances with ephemeral=false: an ephemeral one lives by its heartbeats")
        return self


class InstancePatch(_Request):
    """Changes only what is given."""

    weight: Annotated[int, Field(strict=True, ge=0, le=1_000)] | None = None
    status: InstanceStatus | None = None
    tags: Annotated[list[Key], Field(max_length=TAGS_MAX)] | None = None
    metadata: Metadata | None = None
    """Both replace the former as a whole."""


class InstanceHealth(_Answer):
    """What the last checks in a row have decided, and what the one that decided has seen."""

    passing: bool
    output: str = ""
    checked_by: str = ""
    """The node that checks."""
    since: str = ""
    """RFC 3339, UTC."""


class Instance(_Answer):
    """An instance as others see it. `revision` is the store revision of its last change.

    `stale`: its heartbeats have ended, and those of so many others of the service too that the list is kept as it
    was while somebody looks whether it is really gone.
    """

    namespace: str
    service: str
    id: str
    host: str
    port: int
    scheme: str
    weight: int
    zone: str
    version: str
    metadata: dict[str, str]
    status: Annotated[InstanceStatus, BeforeValidator(_known_status)]
    """One of a later server reads as OUT_OF_SERVICE: it takes no traffic."""
    ttl_s: int
    revision: int
    tags: list[str] = []
    ephemeral: bool = True
    stale: bool = False
    health: InstanceHealth | None = None
    """Of one that is checked, once it was."""

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def takes_traffic(self) -> bool:
        return self.status is InstanceStatus.UP and self.weight > 0


class Deregistered(_Answer):
    revision: int


class InstanceRef(_Request):
    namespace: Name = DEFAULT_NAMESPACE
    service: Name
    id: Key


class AnsweredRef(InstanceRef):
    """The same in an answer."""

    model_config = ConfigDict(extra="ignore")


class Heartbeat(_Request):
    instances: Annotated[list[InstanceRef], Field(max_length=HEARTBEAT_INSTANCES_MAX)]


class HeartbeatResult(_Answer):
    """`unknown` must register again."""

    renewed: int
    unknown: list[AnsweredRef]


class ServiceInstances(_Answer):
    """`revision`: everything up to it is in the answer."""

    namespace: str
    service: str
    revision: int
    instances: list[Instance]
    is_protected: bool = False
    """So many instances have lapsed at once that they are kept, marked stale, until it is known that they are gone."""


class ServiceSettings(_Request):
    """Of one service. It is protected while fewer than `protection_threshold` of its ephemeral instances are alive, for
    `hold_s` seconds at most after they have lapsed; 0 switches that off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protection_threshold: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0.5
    hold_s: Annotated[int, Field(strict=True, ge=10, le=86_400)] = 300
    default_check: HealthCheck | None = None
    """For instances that are not ephemeral and bring none."""


class NamespaceSummary(_Answer):
    namespace: str
    services: int
    instances: int


class NamespaceList(_Answer):
    revision: int
    namespaces: list[NamespaceSummary]


class Acknowledgement(_Request):
    """`subscriber` has in force whatever the registry had in this namespace up to `revision`."""

    subscriber: Annotated[str, StringConstraints(pattern=SUBSCRIBER_PATTERN)]
    namespace: Name = DEFAULT_NAMESPACE
    revision: Annotated[int, Field(strict=True, ge=0)]
    stream: Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")] = ""
    """As the event said, which tells streams of one name apart; empty: the only one of this name."""
    leaving: Annotated[bool, Field(strict=True)] = False
    """It watches no more, in good order: nobody has to wait for it."""


class AcknowledgeRequest(_Answer):
    """`acknowledge` of a registry watch."""

    revision: int
    stream: str = ""


class PendingSubscriber(_Answer):
    """One that watches the service at `node`, and has said that it has `revision` in force, 0 if nothing. Without a
    name it cannot say so; then `subscriber` is its address."""

    subscriber: str
    node: str
    revision: int


class SilentNode(_Answer):
    """A node whose subscribers could not be asked."""

    node: str
    error: str


class Drained(_Answer):
    """`drained`: everybody who watches has acknowledged `revision`, from which on the instance takes no traffic."""

    revision: int
    drained: bool
    acknowledged: list[str]
    pending: list[PendingSubscriber] = []
    silent_nodes: list[SilentNode] = []


class ServiceSummary(_Answer):
    service: str
    instances: int
    up: int
    stale: int = 0
    is_protected: bool = False


class ServiceList(_Answer):
    namespace: str
    revision: int
    services: list[ServiceSummary]


class RegistrySnapshot(_Answer):
    """`snapshot` of a registry watch."""

    revision: int
    services: dict[str, list[Instance]]


class Change(_Answer):
    """One line of "what changed". `details` has, by field, what it was before and what it is since; of contents of
    documents only their versions."""

    revision: int
    at: str
    """RFC 3339, UTC; empty when it is not known."""
    kind: str
    """instance, service, config or route; or of a later version."""
    namespace: str
    name: str
    what: str
    by: str = ""
    details: dict[str, list[str]] = {}


class ChangeList(_Answer):
    """From `from_revision` to `to_revision`, both included, oldest first; `complete` is false when more was asked for
    than is remembered, or than fits."""

    from_revision: int
    to_revision: int
    complete: bool
    changes: list[Change]


class InstanceChange(_Answer):
    """`instance` is absent when it is gone."""

    service: str
    id: str
    instance: Instance | None = None


class RegistryDelta(_Answer):
    """`delta` of a registry watch."""

    revision: int
    changes: list[InstanceChange]


class Bookmark(_Answer):
    revision: int


class Resync(_Answer):
    reason: str


class ConfigFormat(StrEnum):
    YAML = "yaml"
    JSON = "json"
    TOML = "toml"
    PROPERTIES = "properties"
    TEXT = "text"


def _known_format(chosen: object) -> object:
    is_later = isinstance(chosen, str) and chosen not in ConfigFormat.__members__.values()
    return ConfigFormat.TEXT if is_later else chosen


class ConfigMetadata(_Answer):
    """One version of a document. `version` counts its changes from 1 and never repeats; `revision` is the store's.
    A deletion is a version too."""

    namespace: str
    group: str
    key: str
    version: int
    revision: int
    format: Annotated[ConfigFormat, BeforeValidator(_known_format)]
    """One of a later server reads as text."""
    deleted: bool = False
    author: str
    comment: str
    changed_at: str
    """RFC 3339, UTC."""
    sha256: str


class ConfigDocument(ConfigMetadata):
    content: str


class ConfigHistory(_Answer):
    versions: list[ConfigMetadata]


class ConfigList(_Answer):
    namespace: str
    revision: int
    documents: list[ConfigMetadata]


class Rollback(_Request):
    """Publish the content of `version` again, as a new version."""

    version: Annotated[int, Field(ge=1)]
    comment: str = ""
    author: str = ""


class ConfigSnapshot(_Answer):
    """`snapshot` of a config watch; documents that do not exist are absent."""

    revision: int
    documents: list[ConfigDocument]


class ConfigDelta(_Answer):
    """`delta` of a config watch. A deleted document comes with `deleted` and no content."""

    revision: int
    documents: list[ConfigDocument]


class StoreEndpoint(_Answer):
    """One endpoint of an external store, as one node sees it. `name` is the member's that answers there. While there is
    an `error`, all the rest is what it said last, and may be old."""

    address: str
    error: str | None = None
    name: str = ""
    role: str = ""
    """leader, follower or learner."""
    version: str = ""
    revision: int = 0
    store_bytes: int = 0


class ExternalStore(_Answer):
    """What a node that is no member of the store stands on. `leader` is empty while no endpoint names one."""

    url: str
    leader: str = ""
    endpoints: list[StoreEndpoint] = []


class NodeStatus(_Answer):
    """A node's own word. `members` are all of them, `voters` and `learners` by their role; `first_index` is the first
    entry that its log still has, `snapshot_index` the last one that its newest snapshot holds the state of.

    A node on an external store (`store` is not None) has the role `api`, no members and no log; its numbers are the
    store's, as the most advanced endpoint gives them.
    """

    name: str
    url: str
    role: str
    leader: str
    term: int
    commit_index: int
    applied_index: int
    revision: int
    store_bytes: int
    members: list[str]
    connected: list[str]
    apps: list[str]
    uptime_s: float
    voters: list[str] = []
    learners: list[str] = []
    first_index: int = 1
    snapshot_index: int = 0
    quota_bytes: int = 0
    """From how many `store_bytes` on the store refuses to grow; 0: not known."""
    store: ExternalStore | None = None
    alarms: list[str] = []
    """What an operator should know of this node's apps, such as that it shows another state than others."""


class NodeReport(_Answer):
    """A node's own word, or why there is none."""

    name: str
    url: str
    status: NodeStatus | None = None
    error: str | None = None


class ClusterStatus(_Answer):
    """`leader` is empty when no majority of the voters agrees on one now."""

    leader: str
    nodes: list[NodeReport]


class MemberRole(StrEnum):
    VOTER = "voter"
    LEARNER = "learner"


class ClusterMember(_Answer):
    """One member. `role` is one of `MemberRole`, or of a later version's; `peer` is where the others reach it; `url`,
    where it serves HTTP, is empty while it is not up.

    `is_reachable`, `match_index` (the last entry that it surely has) and `lag_entries` (how many it lacks) are the
    leader's knowledge; None when there is no leader to ask.
    """

    name: str
    peer: str
    role: str
    is_leader: bool = False
    url: str = ""
    is_reachable: bool | None = None
    match_index: int | None = None
    lag_entries: int | None = None

    @property
    def is_voter(self) -> bool:
        return self.role == MemberRole.VOTER


class MemberList(_Answer):
    """`leader` is empty when nobody who leads could be asked: then it is what the answering node knew last.
    `removed`: names that were members, and may never be again; newest first."""

    cluster_id: str
    leader: str
    members: list[ClusterMember]
    removed: list[str] = []

    def find(self, name: str) -> ClusterMember | None:
        return next((member for member in self.members if member.name == name), None)

    def spare_voters(self, without: str) -> int:
        """How many voters beyond a majority can be reached once `without` is removed; below 0: no majority can."""
        rest = [member for member in self.members if member.is_voter and member.name != without]
        return sum(bool(member.is_reachable) for member in rest) - (len(rest) // 2 + 1)


class AddMember(_Request):
    """`address` is host:port, where the others will reach the new member."""

    name: Name
    address: Annotated[str, StringConstraints(max_length=260)]


class Transfer(_Request):
    """Who is to lead; empty: the voter that lacks least."""

    to: Name | Literal[""] = ""


class Transferred(_Answer):
    leader: str
