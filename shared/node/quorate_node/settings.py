"""A node's settings, and what they may not be: each refusal names the flag and the way out.

A node is a member of the store (`--members`, `--peer`, `--data-dir`, …), or it stands on a store that is somewhere
else (`--store`), and then has no place for what only a member needs.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict
from quorate_core.settings import Address, HostPort, ProcessSettings
from quorate_raft.core.membership import LEARNERS_MAX, VOTERS_MAX
from quorate_store.database import QUOTA_BYTES_DEFAULT, QUOTA_BYTES_MAX

from quorate_node.store_url import StoreUrl

MEMBERS_MAX = VOTERS_MAX + LEARNERS_MAX
STORE_QUOTA_BYTES_MIN = 1024 * 1024
"""Less would not hold what the platform itself keeps."""

_MEMBER_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")
CLUSTER_ID_CHARS_MAX = 128
_CLUSTER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, to be refused as an advertised address


class Members(dict[str, HostPort]):
    """The cluster's members by name, each with the address at which the others reach it."""

    @classmethod
    def parse(cls, text: Any) -> "Members":
        """From `node-1=127.0.0.1:7501,node-2=127.0.0.1:7502`. Raises ValueError."""
        if isinstance(text, Members):
            return text
        members = cls()
        for part in str(text).split(","):
            name, equals, address = part.strip().partition("=")
            if not equals or not _MEMBER_NAME.match(name):
                raise ValueError(f"{part!r} is no member; write name=host:port, separated by commas")
            if name in members:
                raise ValueError(f"{name} is given twice")
            members[name] = HostPort.parse(address)
        if len(members) > MEMBERS_MAX:
            raise ValueError(f"{len(members)} members; a cluster has at most {MEMBERS_MAX}")
        if len(set(members.values())) < len(members) and len(members) > 1:
            raise ValueError("two members have the same address")
        return members

    def __str__(self) -> str:
        return ",".join(f"{name}={address}" for name, address in self.items())


def is_cluster_id(text: str) -> bool:
    return len(text) <= CLUSTER_ID_CHARS_MAX and _CLUSTER_ID.match(text) is not None


def _parse_names(text: Any) -> Any:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if isinstance(text, str) else text


MembersField = Annotated[Members, NoDecode, BeforeValidator(Members.parse), PlainSerializer(str, return_type=str)]
StoreUrlField = Annotated[StoreUrl, BeforeValidator(StoreUrl.parse), PlainSerializer(str, return_type=str)]


class ClusterState(StrEnum):
    """What an empty data folder means: that the cluster begins with this member, that the member is to join one, or
    that its data is lost. With a log, a member goes on, whatever it is."""

    NEW = "new"
    JOIN = "join"
    EXISTING = "existing"


_WANTED_BY_A_MEMBER = ("data_dir", "peer", "members", "cluster_secret_file")
_ONLY_FOR_A_MEMBER = (
    "data_dir", "peer", "peer_advertise", "members", "cluster_state", "begun_file", "store_quota_bytes",
)  # fmt: skip
_ONLY_WITH_A_STORE = ("store_token_file", "store_ca_file")


class NodeSettings(ProcessSettings):
    """One member of the store and the apps on it; or the apps alone, on a store that is somewhere else."""

    model_config = SettingsConfigDict(env_prefix="QUORATE_NODE_")

    name: str = ""
    """This node's name; default: that of the member in `--members` whose address is `--peer-advertise`."""
    data_dir: Path = Path()
    """Where a member of the store keeps its files; made when it is not there."""
    store: StoreUrlField | None = None
    """Be no member, and stand on this store: etcd://host:port,host:port (etcds:// over TLS), an etcd cluster or other
    nodes. This node then has no data, no `--peer` and no `--members`."""
    store_token_file: Path | None = None
    """The token that the store's nodes want, where they are Quorate's own and not on loopback."""
    store_ca_file: Path | None = None
    """The certificates, in PEM, that vouch for a store at etcds://; default: those of this machine."""
    http: Address
    """Where the HTTP API listens. Bound to anything but loopback, it needs `--token-file`."""
    http_advertise: Address | None = None
    """Where other nodes and clients reach the HTTP API; default: where it listens."""
    peer: Address | None = None
    """Where this member listens for the others."""
    peer_advertise: Address | None = None
    """Where the others reach this member: as `--members` says."""
    members: MembersField = Members()
    """Members, this one included: name=host:port, separated by commas. The cluster begins with them; later its log
    says who is a member, and these are only addresses, which win over those in the log."""
    cluster_id: str = ""
    """The same on all members, and never used again for another cluster."""
    cluster_id_file: Path | None = None
    """A file that has it, where it was generated; instead of `--cluster-id`."""
    cluster_state: ClusterState = ClusterState.NEW
    """What to do without a log. 'new': begin the cluster together with all of `--members`. 'join': wait until the
    cluster has added this member (quorate cluster add). 'existing': refuse to start, since this member had one."""
    begun_file: Path | None = None
    """Written as soon as this member has a log; while it is there, the member does not start without one. Put it where
    it is not lost together with `--data-dir`."""
    cluster_secret_file: Path | None = None
    """The secret that proves members to each other: at least 32 random characters, readable by its owner only. With
    `--store`, where that is Quorate's own nodes: theirs, to be let write what belongs to the apps."""
    store_quota_bytes: Annotated[int, Field(ge=STORE_QUOTA_BYTES_MIN, le=QUOTA_BYTES_MAX)] = QUOTA_BYTES_DEFAULT
    """How large the store may grow before it refuses to; the same on all members, since the leader's counts."""
    token_file: Path | None = None
    """The token that clients must send, when the HTTP API is not on loopback."""
    apps: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_parse_names)] = None
    """Names of the apps to run, separated by commas; default: all that are installed."""

    @model_validator(mode="after")
    def _is_member_or_stands_on_a_store(self) -> Self:
        given = self.model_fields_set
        if self.store is None:
            missing = [_flag(name) for name in _WANTED_BY_A_MEMBER if name not in given]
            useless = [_flag(name) for name in _ONLY_WITH_A_STORE if name in given]
            if missing:
                raise ValueError(
                    f"{', '.join(missing)}: missing for a member of the store; or give --store etcd://host:port, "
                    "and this node is none"
                )
        else:
            useless = [_flag(name) for name in _ONLY_FOR_A_MEMBER if name in given]
        if useless:
            where = "without --store" if self.store is None else "with --store: that is for a member of the store"
            raise ValueError(f"{', '.join(useless)}: of no use {where}; leave it out")
        if self.store_ca_file is not None and self.store is not None and not self.store.is_secure:
            raise ValueError(f"--store-ca-file: of no use with {self.store}, which is without TLS; write etcds://")
        return self

    @model_validator(mode="after")
    def _knows_its_cluster(self) -> Self:
        if self.cluster_id_file is not None:
            if self.cluster_id:
                raise ValueError("--cluster-id and --cluster-id-file are both given; one of them is enough")
            try:
                self.cluster_id = self.cluster_id_file.read_text().strip()
            except OSError as error:
                raise ValueError(f"--cluster-id-file {self.cluster_id_file}: {error.strerror}") from error
        if self.store is not None and not self.cluster_id:
            self.cluster_id = ",".join(sorted(map(str, self.store.endpoints)))
        elif not is_cluster_id(self.cluster_id):
            raise ValueError("--cluster-id takes letters, digits, '.', '_' and '-', at most 128")
        return self

    @model_validator(mode="after")
    def _has_name(self) -> Self:
        if self.store is not None and not _MEMBER_NAME.match(self.name):
            raise ValueError(
                "--name takes lower-case letters, digits, '.', '_' and '-', at most 63; every node on the store needs "
                "another"
            )
        if self.name:
            return self
        if self.peer_advertise is None:
            raise ValueError("--name is missing; or give --peer-advertise, and the member with that address is meant")
        named = [name for name, address in self.members.items() if address == self.peer_advertise]
        if not named:
            raise ValueError(f"no member has the address --peer-advertise {self.peer_advertise}: {self.members}")
        self.name = named[0]
        return self

    @model_validator(mode="after")
    def _has_its_place_among_the_members(self) -> Self:
        if self.store is not None or self.peer is None:
            return self
        if self.name not in self.members:
            raise ValueError(f"--name {self.name} is not among --members {self.members}")
        own = self.members[self.name]
        if self.peer_advertise not in (None, own):
            raise ValueError(f"--peer-advertise {self.peer_advertise} is not what --members says of {self.name}: {own}")
        if len(self.members) > 1 and 0 in (self.peer.port, *(address.port for address in self.members.values())):
            raise ValueError("members of a cluster need fixed peer ports; port 0 is for a single member")
        return self

    @model_validator(mode="after")
    def _is_protected(self) -> Self:
        if not self.http.is_loopback and self.token_file is None:
            raise ValueError(
                f"--http {self.http} can be reached by others, and nothing protects it: "
                "give --token-file FILE, or bind 127.0.0.1"
            )
        if self.http.host in _EVERYWHERE and self.http_advertise is None:
            raise ValueError(f"--http {self.http} is no address that others can use: give --http-advertise host:port")
        return self

    def advertised_http(self, bound: HostPort) -> HostPort:
        """Where others reach the API that is bound to `bound`."""
        return bound if self.http_advertise is None else self.http_advertise


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
