"""How far an external store can be reached: each endpoint is asked for its status, all the time.

The store's own client goes wherever it is answered and hides which endpoints are silent. An operator wants to know of
them, and a node that stands on the store must know whether it can serve. So every PROBE_INTERVAL_S each endpoint is
asked by `/v3/maintenance/status`, all at once, and what it said or why it did not is kept. An endpoint that answers
without knowing a leader is cut off from its majority: it counts as answering, and not as serving.

Members are known by ids there; their names come from `/v3/cluster/member/list`, asked again when an unknown id appears.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
import msgspec
import structlog
from quorate_core.clock import Clock
from quorate_sdk.wire import StoreEndpoint

from quorate_node.store_url import StoreUrl

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 1.5
"""Longer than a fsync or a hand-over takes; a store that is slower than this is in trouble."""
SERVING_WITHIN_S = 5.0
"""An endpoint serves while it has named a leader so lately: an election, which takes less, is no reason to turn away
clients that would wait for it."""
ANSWER_BYTES_MAX = 256 * 1024
ERROR_CHARS_MAX = 200

Wait = Callable[[float], Awaitable[None]]
"""Waits this many seconds; `asyncio.sleep` outside tests."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class _Header(msgspec.Struct, frozen=True):
    member_id: str = ""
    revision: str = "0"


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    """As etcd's gateway gives it: 64-bit numbers as strings, what is zero left out."""

    header: _Header = _Header()
    version: str = ""
    db_size: str = "0"
    leader: str = ""
    raft_index: str = "0"
    raft_applied_index: str = "0"
    raft_term: str = "0"
    is_learner: bool = False


class _Member(msgspec.Struct, frozen=True):
    ID: str = ""
    name: str = ""


class _MemberList(msgspec.Struct, frozen=True):
    members: list[_Member] = []


@dataclass(frozen=True, slots=True)
class EndpointState:
    """What one endpoint said last, and when on the clock that never goes back; `error`: why it has not answered since.

    `member` and `leader` are ids, as the store writes them; `leader` is empty when it knows of none.
    """

    url: str
    error: str | None = "it was not asked yet"
    served_at_s: float | None = None
    member: str = ""
    leader: str = ""
    version: str = ""
    term: int = 0
    commit_index: int = 0
    applied_index: int = 0
    revision: int = 0
    store_bytes: int = 0
    is_learner: bool = False

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]


class EndpointProbes:
    """The endpoints of `store_url`, in its order. `run` is a task of its owner; until its first round nothing is known.

    `headers` are sent with each request; `tls` is for a store at `etcds://`.
    """

    def __init__(
        self,
        store_url: StoreUrl,
        clock: Clock,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
        wait: Wait = asyncio.sleep,
    ) -> None:
        self.store_url = store_url
        self._clock = clock
        self._headers = dict(headers)
        self._tls = tls
        self._wait = wait
        self._states = {url: EndpointState(url) for url in store_url.urls}
        self._names: dict[str, str] = {}

    @property
    def states(self) -> Sequence[EndpointState]:
        return tuple(self._states.values())

    async def run(self) -> None:
        """Until cancelled."""
        # Endpoints are reached directly, whatever proxies the environment names: a token must not pass a stranger.
        async with httpx.AsyncClient(headers=self._headers, trust_env=False, verify=self._tls or True) as client:
            while True:
                await self.ask_all(client)
                await self._wait(PROBE_INTERVAL_S)

    async def ask_all(self, client: httpx.AsyncClient) -> None:
        """One round."""
        await asyncio.gather(*(self._ask(client, url) for url in self._states))
        ids = {member for state in self.states for member in (state.member, state.leader) if member}
        answering = [state.url for state in self.states if state.error is None]
        if answering and not ids <= self._names.keys():
            await self._learn_names(client, answering[0])

    def why_not_serving(self) -> str | None:
        """None while any endpoint has lately answered and named a leader; else which did what."""
        now_s = self._clock.monotonic_s()
        served = [state.served_at_s for state in self.states if state.served_at_s is not None]
        if served and now_s - max(served) <= SERVING_WITHIN_S:
            return None
        said = "; ".join(f"{state.address}: {state.error or 'it knows no leader'}" for state in self.states)
        return f"the store cannot be reached ({said})"

    @property
    def leader(self) -> str:
        """Who leads, by the word of whoever answers in the highest term; empty when none of them knows."""
        answering = [state for state in self.states if state.error is None]
        newest = max(answering, key=lambda state: (state.term, bool(state.leader)), default=None)
        return "" if newest is None else self.name_of(newest.leader)

    def name_of(self, member: str) -> str:
        """Of a member's id: its name, or the id as etcd's own tools print it."""
        if not member:
            return ""
        return self._names.get(member) or (f"{int(member):x}" if member.isdecimal() else member)

    def report(self) -> list[StoreEndpoint]:
        return [self._endpoint(state) for state in self.states]

    def _endpoint(self, state: EndpointState) -> StoreEndpoint:
        role = "learner" if state.is_learner else "leader" if state.member == state.leader else "follower"
        return StoreEndpoint(
            address=state.address, error=state.error,
            name=self.name_of(state.member), role=role if state.member else "",
            version=state.version, revision=state.revision, store_bytes=state.store_bytes,
        )  # fmt: skip

    async def _ask(self, client: httpx.AsyncClient, url: str) -> None:
        before = self._states[url]
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                status = await _post(client, url + "/v3/maintenance/status", _Status)
            state = self._state_of(url, status, before)
        except TimeoutError:
            state = replace(before, error=f"no answer within {PROBE_TIMEOUT_S:g} s")
        except (httpx.HTTPError, _Unreadable) as error:
            state = replace(before, error=_shortened(str(error) or type(error).__name__))
        self._states[url] = state
        if (state.error is None) != (before.error is None):
            log.info("store_endpoint_answers" if state.error is None else "store_endpoint_silent",
                     endpoint=state.address, reason=state.error)  # fmt: skip

    def _state_of(self, url: str, status: _Status, before: EndpointState) -> EndpointState:
        served_at_s = self._clock.monotonic_s() if status.leader else before.served_at_s
        return EndpointState(
            url=url, error=None, served_at_s=served_at_s, member=status.header.member_id, leader=status.leader,
            version=status.version, term=_number(status.raft_term), commit_index=_number(status.raft_index),
            applied_index=_number(status.raft_applied_index), revision=_number(status.header.revision),
            store_bytes=_number(status.db_size), is_learner=status.is_learner,
        )  # fmt: skip

    async def _learn_names(self, client: httpx.AsyncClient, url: str) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                found = await _post(client, url + "/v3/cluster/member/list", _MemberList)
        except (TimeoutError, httpx.HTTPError, _Unreadable):
            return  # names are for people to read; ids will do until the next round
        self._names = {member.ID: member.name for member in found.members if member.ID and member.name}


class _Unreadable(Exception):
    """An answer that is none of a store's."""


async def _post(client: httpx.AsyncClient, url: str, answer_type: type[T]) -> T:
    """Raises httpx.HTTPError, and _Unreadable for another status than 200, too much, or what is no such answer."""
    body = bytearray()
    async with client.stream("POST", url, content=b"{}", timeout=None) as response:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                raise _Unreadable(f"it answers over {ANSWER_BYTES_MAX} bytes")
    if response.status_code != 200:
        raise _Unreadable(f"status {response.status_code}: {_reason(bytes(body))}")
    try:
        return msgspec.json.decode(body, type=answer_type)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _Unreadable(f"it does not answer as etcd does: {error}") from error


def _reason(body: bytes) -> str:
    """What an error says of itself: etcd's `message`, a problem's `detail`."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = None
    said = (found.get("detail") or found.get("message")) if isinstance(found, dict) else None
    return str(said or "without a reason")


def _number(text: str) -> int:
    """Raises _Unreadable."""
    try:
        return int(text)
    except ValueError as error:
        raise _Unreadable(f"it does not answer as etcd does: {text[:32]!r} is no number") from error


def _shortened(text: str) -> str:
    return text if len(text) <= ERROR_CHARS_MAX else text[: ERROR_CHARS_MAX - 1] + "…"
