"""Instances of services in either registry: how one is registered, renewed and listed, as requests and answers. Pure.

Ours is the registry's API. Of etcd it is what registrars make of it: a lease for each instance, and a key attached to
it with the same JSON for a value; heartbeats are keepalives of leases, a batch of them being several messages of one
stream; a list is a range over the service's prefix. Both sides register the same instances, known by numbers.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from quorate_sdk.wire import HEARTBEAT_INSTANCES_MAX

from benchmarks.store_members import text_of

INSTANCES_A_SERVICE = 100
SMALL, LARGE = range(10), range(1_000, 2_000)
"""Two services of their own sizes, for lists."""
KEPT = range(10_000, 20_000)
"""Those that heartbeats are measured with."""
NEW_FROM = 1_000_000
"""Registrations that are measured begin here."""
LEASE_FROM = 1_000_000_000
LIST_ANSWER_CHARS_SHOWN_MAX = 200
KEY_PREFIX = "bench/registry/"


class Call(NamedTuple):
    method: str
    path: str
    body: str = ""


class WrongAnswer(Exception):
    """The answer is not what was asked for; the message shows its beginning."""


def service_of(number: int) -> str:
    """The name says how many instances it has, where lists are measured."""
    for listed in (SMALL, LARGE):
        if number in listed:
            return f"list-{len(listed)}"
    return f"bench-{number // INSTANCES_A_SERVICE:06}"


def id_of(number: int) -> str:
    return f"instance-{number:08}"


def spec_of(number: int, ttl_s: int, change: int = 0) -> dict[str, Any]:
    """The instance as it is registered, some 200 bytes of JSON. `change` counts what was changed of it."""
    return {
        "host": "127.0.0.1", "port": 20_000 + number % 40_000, "scheme": "http", "weight": 100, "zone": "zone-a",
        "version": "1.4.2", "metadata": {"change": f"{change:06}", "commit": "4f2a9c1d", "rack": "r12"},
        "status": "UP", "ttl_s": ttl_s,
    }  # fmt: skip


class RegistrySide(Protocol):
    name: str
    batch_max: int
    """Instances that one heartbeat may renew."""

    def registration(self, number: int, ttl_s: int) -> Sequence[Call]:
        """Calls to be made one after the other; each is answered with success."""
        ...

    def change(self, number: int, ttl_s: int, change: int) -> Call:
        """The instance with another value of `change` in its metadata."""
        ...

    def heartbeat(self, numbers: Sequence[int]) -> Call: ...

    def renewed(self, answer: bytes, count: int) -> None:
        """Raises WrongAnswer unless all `count` instances of the heartbeat were renewed."""
        ...

    def listing(self, service: str, *, is_stale: bool = False) -> Call: ...

    def listed(self, answer: bytes) -> list[str]:
        """Ids in order. Raises WrongAnswer."""
        ...

    def counting(self) -> Call: ...

    def counted(self, answer: bytes) -> int:
        """How many instances there are, of all services. Raises WrongAnswer."""
        ...

    def watching(self, service: str) -> Call: ...


class QuorateSide:
    name = "quorate"
    batch_max = HEARTBEAT_INSTANCES_MAX
    _root = "/v1/registry/default/services"

    def registration(self, number: int, ttl_s: int) -> Sequence[Call]:
        return [Call("PUT", self._instance(number), _compact(spec_of(number, ttl_s)))]

    def change(self, number: int, ttl_s: int, change: int) -> Call:
        metadata = spec_of(number, ttl_s, change)["metadata"]
        return Call("PATCH", self._instance(number), _compact({"metadata": metadata}))

    def heartbeat(self, numbers: Sequence[int]) -> Call:
        named = [{"service": service_of(number), "id": id_of(number)} for number in numbers]
        return Call("POST", "/v1/registry/heartbeat", _compact({"instances": named}))

    def renewed(self, answer: bytes, count: int) -> None:
        said = _read(answer)
        if said.get("renewed") != count or said.get("unknown") != []:
            raise _wrong(answer)

    def listing(self, service: str, *, is_stale: bool = False) -> Call:
        return Call("GET", f"{self._root}/{service}{'?consistency=stale' if is_stale else ''}")

    def listed(self, answer: bytes) -> list[str]:
        return [str(each["id"]) for each in _part(answer, "instances")]

    def counting(self) -> Call:
        return Call("GET", self._root)

    def counted(self, answer: bytes) -> int:
        return sum(int(each["instances"]) for each in _part(answer, "services"))

    def watching(self, service: str) -> Call:
        return Call("GET", f"/v1/registry/default/watch?service={service}")

    def _instance(self, number: int) -> str:
        return f"{self._root}/{service_of(number)}/instances/{id_of(number)}"


class EtcdSide:
    name = "etcd"
    batch_max = 25
    """Its JSON API begins to answer a stream of messages with the first one, and then reads no more of an HTTP/1.1
    request than it has buffered already, 512 bytes: of 100 messages it answers 26 or all, as it comes."""

    def registration(self, number: int, ttl_s: int) -> Sequence[Call]:
        grant = {"TTL": str(ttl_s), "ID": str(LEASE_FROM + number)}
        return [Call("POST", "/v3/lease/grant", _compact(grant)), self.change(number, ttl_s, 0)]

    def change(self, number: int, ttl_s: int, change: int) -> Call:
        value = _compact(spec_of(number, ttl_s, change))
        put = {
            "key": _text(_key(service_of(number), id_of(number))), "value": _text(value),
            "lease": str(LEASE_FROM + number),
        }  # fmt: skip
        return Call("POST", "/v3/kv/put", _compact(put))

    def heartbeat(self, numbers: Sequence[int]) -> Call:
        messages = (f'{{"ID":"{LEASE_FROM + number}"}}' for number in numbers)
        return Call("POST", "/v3/lease/keepalive", "".join(messages))

    def renewed(self, answer: bytes, count: int) -> None:
        # A lease that has ended is answered without a time to live, which is how its JSON has a zero.
        results = [_read(line).get("result", {}) for line in answer.splitlines()]
        if len(results) != count or not all(int(each.get("TTL", 0)) > 0 for each in results):
            raise _wrong(answer)

    def listing(self, service: str, *, is_stale: bool = False) -> Call:
        asked: dict[str, Any] = {"key": _text(_key(service)), "range_end": _text(_end(_key(service)))}
        return Call("POST", "/v3/kv/range", _compact({**asked, **({"serializable": True} if is_stale else {})}))

    def listed(self, answer: bytes) -> list[str]:
        return [base64.b64decode(each["key"]).decode().rpartition("/")[2] for each in _part(answer, "kvs")]

    def counting(self) -> Call:
        asked = {"key": _text(KEY_PREFIX), "range_end": _text(_end(KEY_PREFIX)), "count_only": True}
        return Call("POST", "/v3/kv/range", _compact(asked))

    def counted(self, answer: bytes) -> int:
        return int(_read(answer).get("count", 0))

    def watching(self, service: str) -> Call:
        asked = {"key": _text(_key(service)), "range_end": _text(_end(_key(service)))}
        return Call("POST", "/v3/watch", _compact({"create_request": asked}))


SIDES: Mapping[str, RegistrySide] = {"quorate": QuorateSide(), "etcd": EtcdSide()}


def _key(service: str, instance_id: str = "") -> str:
    return f"{KEY_PREFIX}{service}/{instance_id}"


def _end(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _compact(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))


def _text(content: str) -> str:
    return text_of(content.encode())


def _read(answer: bytes) -> dict[str, Any]:
    try:
        said = json.loads(answer)
    except ValueError:
        raise _wrong(answer) from None
    if not isinstance(said, dict):
        raise _wrong(answer)
    return said


def _part(answer: bytes, name: str) -> list[dict[str, Any]]:
    found = _read(answer).get(name, [])
    if not isinstance(found, list):
        raise _wrong(answer)
    return found


def _wrong(answer: bytes) -> WrongAnswer:
    return WrongAnswer(f"answered with {answer[:LIST_ANSWER_CHARS_SHOWN_MAX]!r}")
