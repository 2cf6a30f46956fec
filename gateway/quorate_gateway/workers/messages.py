"""What the first process and its workers say to each other: MessagePack in frames, over a socket pair.

First process to worker: `Setup` once, then `Update`, `Ask` and `ReloadCertificate`. Worker to first process: `Serving`
once, `Applied` for each `Update`, `Reloaded` for each `ReloadCertificate`, and `Report` by itself and for each `Ask`.
"""

from typing import ClassVar

import msgspec

from quorate_gateway.matching import Endpoint
from quorate_gateway.proxy.balancing import EndpointReport
from quorate_gateway.served import (
    BreakerReport,
    ClientReport,
    Forced,
    LimitReport,
    PoolReport,
    RedisReport,
    RouteReport,
    Totals,
)
from quorate_gateway.settings import WorkerSettings


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """The first thing that a worker hears. `number` is from 1; `settings` are JSON of `WorkerSettings`. With
    `has_snapshot` an update follows at once, and it serves by that from the beginning on."""

    number: int
    settings: bytes
    has_snapshot: bool

    def read(self) -> WorkerSettings:
        return WorkerSettings.model_validate_json(self.settings)


class SentEndpoint(msgspec.Struct, frozen=True, array_like=True):
    """An `Endpoint` without what its place in the message says."""

    instance_id: str
    host: str
    port: int
    authority: str
    weight: int
    zone: str
    version: str

    @classmethod
    def of(cls, endpoint: Endpoint) -> "SentEndpoint":
        return cls(
            endpoint.instance_id, endpoint.host, endpoint.port, endpoint.authority, endpoint.weight, endpoint.zone,
            endpoint.version,
        )  # fmt: skip

    def of_service(self, service: str) -> Endpoint:
        return Endpoint(
            self.instance_id, self.host, self.port, self.authority, self.weight, self.zone, self.version, service
        )


class Update(msgspec.Struct, frozen=True, tag="update"):
    """What is other than in the update before; before the first, there is nothing. `document` and `api_keys` are JSON,
    None when they are the same. `put` and `gone` are by service, those in `gone` by authority. `forced` is by route;
    None for a breaker that was released."""

    number: int
    revisions: tuple[int, int, int]
    document: bytes | None = None
    api_keys: bytes | None = None
    put: dict[str, list[SentEndpoint]] = {}
    gone: dict[str, list[str]] = {}
    forced: dict[str, Forced | None] = {}


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """For a `Report` with details."""

    number: int


class ReloadCertificate(msgspec.Struct, frozen=True, tag="reload"):
    """Use what the certificate's files hold now."""


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """The worker accepts connections."""


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    number: int


class Reloaded(msgspec.Struct, frozen=True, tag="reloaded"):
    """`error` says why the former certificate is still used; empty when it is not."""

    error: str


class Details(msgspec.Struct, frozen=True, array_like=True):
    """What is looked at only when somebody asks. `endpoints` are by `endpoint_key`, only those that there is something
    to say of."""

    pools: dict[str, PoolReport]
    endpoints: dict[str, EndpointReport]
    clients: list[ClientReport]


class Report(msgspec.Struct, frozen=True, tag="report"):
    """`routes`, `limits` and `breakers` are by route, only those that are other than in the report before; the names in
    `routes_left` have none any more. `answers` is the number of an `Ask`, 0 when nobody asked."""

    answers: int
    totals: Totals
    routes: dict[str, RouteReport]
    limits: dict[str, LimitReport]
    breakers: dict[str, BreakerReport]
    routes_left: list[str]
    redis: RedisReport | None
    memory_bytes: int
    cpu_s: float
    details: Details | None = None


ToWorker = Setup | Update | Ask | ReloadCertificate
FromWorker = Serving | Applied | Reloaded | Report


class Codec:
    """Payloads of frames. `decode` raises msgspec.DecodeError or ValidationError for what is none."""

    encode: ClassVar = staticmethod(msgspec.msgpack.Encoder().encode)
    to_worker: ClassVar = staticmethod(msgspec.msgpack.Decoder(ToWorker).decode)
    from_worker: ClassVar = staticmethod(msgspec.msgpack.Decoder(FromWorker).decode)


def endpoint_key(instance_id: str, authority: str) -> str:
    return f"{instance_id}@{authority}"
