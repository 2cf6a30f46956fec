"""The HTTP API's models: one definition, used by the servers that answer and the clients that ask.

Registry, under `/v1/registry`:

    PUT    /{namespace}/services/{service}/instances/{id}   InstanceSpec -> Instance (201 new, 200 replaced)
    PATCH  /{namespace}/services/{service}/instances/{id}   InstancePatch -> Instance
    GET    /{namespace}/services/{service}/instances/{id}   -> Instance
    DELETE /{namespace}/services/{service}/instances/{id}   -> Deregistered
    POST   /heartbeat                                       Heartbeat -> HeartbeatResult
    GET    /{namespace}/services                            -> ServiceList
    GET    /{namespace}/services/{service}                  -> ServiceInstances
             ?consistency=linearizable|stale  ?min_revision=N&wait=SECONDS (blocking query)
    GET    /{namespace}/watch?service=a&service=b           -> Server-Sent Events (no service: all of them)
             resumes by the `Last-Event-ID` header or ?revision=N

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
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A namespace, service or group: lower-case letters, digits, `.`, `_`, `-`; at most 63 characters."""
KEY_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$"
Key = Annotated[str, StringConstraints(pattern=KEY_PATTERN)]
"""An instance id or a document's key: letters, digits, `.`, `_`, `-`; at most 128 characters."""

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


class InstanceSpec(_Request):
    """What registers an instance. It is gone `ttl_s` seconds after its last heartbeat.

    `weight`: its part of what the gateway sends to all instances; 0 takes no traffic. The
    SDK's own client counts all alike.
    """

    host: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")]
    port: Annotated[int, Field(ge=1, le=65_535)]
    scheme: Literal["http", "https"] = "http"
    weight: Annotated[int, Field(ge=0, le=1_000)] = 100
    zone: Annotated[str, StringConstraints(max_length=63)] = ""
    version: Annotated[str, StringConstraints(max_length=63)] = ""
    metadata: Metadata = {}
    status: InstanceStatus = InstanceStatus.UP
    ttl_s: Annotated[int, Field(ge=TTL_S_MIN, le=TTL_S_MAX)] = TTL_S_DEFAULT


class InstancePatch(_Request):
    """Changes only what is given."""

    weight: Annotated[int, Field(ge=0, le=1_000)] | None = None
    status: InstanceStatus | None = None
    metadata: Metadata | None = None
    """Replaces the former as a whole."""


class Instance(_Answer):
    """An instance as others see it. `revision` is the store revision of its last change."""

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


class ServiceSummary(_Answer):
    service: str
    instances: int
    up: int


class ServiceList(_Answer):
    namespace: str
    revision: int
    services: list[ServiceSummary]


class RegistrySnapshot(_Answer):
    """`snapshot` of a registry watch."""

    revision: int
    services: dict[str, list[Instance]]


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
