"""`/v1/cluster`: what this node is, what all nodes say of themselves, and who is a member.

What a node can say of itself depends on the engine that it stands on (`engines`): a member knows its log, a node on an
external store knows how far the store can be reached. Each has a view, and the endpoints are the same for both. The
models are in `quorate_sdk.wire`; what the members' part does is in `members`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastapi import APIRouter, FastAPI
from pydantic import ValidationError
from quorate_core.clock import Clock
from quorate_sdk.wire import (
    AddMember,
    ClusterStatus,
    MemberList,
    Name,
    NodeReport,
    NodeStatus,
    Transfer,
    Transferred,
)
from quorate_store.apps import Fleet, FleetAnswer
from quorate_store.port import Store

from quorate_node.members import ClusterControl

PREFIX = "/v1/cluster"
STATUS_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node is, whatever it stands on. `url` is where others reach it."""

    name: str
    url: str
    apps: tuple[str, ...]


class ClusterView(Protocol):
    """What an engine knows of the cluster, for this node's word and for the leader that all words together name."""

    async def node(self, identity: Identity, uptime_s: float) -> NodeStatus: ...
    def leader(self, own: NodeStatus, reports: Iterable[NodeReport]) -> str:
        """Empty when there is none for sure."""
        ...


class MemberAdministration(Protocol):
    """What `/v1/cluster/members` and `/v1/cluster/transfer` do; `members.Members` where this node is one."""

    async def list(self) -> MemberList: ...
    async def add(self, wanted: AddMember) -> MemberList: ...
    async def promote(self, name: str) -> MemberList: ...
    async def remove(self, name: str) -> MemberList: ...
    async def transfer(self, wanted: Transfer) -> Transferred: ...


class MemberView:
    """A member's: the store answers for its state, `control` for consensus."""

    def __init__(self, store: Store, control: ClusterControl) -> None:
        self._store = store
        self._control = control

    async def node(self, identity: Identity, uptime_s: float) -> NodeStatus:
        own, log = await self._store.status(), self._control.status()
        membership = log.membership
        return NodeStatus(
            name=own.name, url=identity.url, role=own.role, leader=own.leader, term=own.term,
            commit_index=own.commit_index, applied_index=own.applied_index, revision=own.revision,
            store_bytes=own.store_bytes, members=list(membership.names), connected=list(own.connected),
            apps=list(identity.apps), uptime_s=uptime_s,
            voters=list(membership.voters), learners=list(membership.learners),
            first_index=log.first_index, snapshot_index=log.snapshot_index, quota_bytes=own.quota_bytes,
        )  # fmt: skip

    def leader(self, own: NodeStatus, reports: Iterable[NodeReport]) -> str:
        return agreed_leader(own.voters, reports)


class ClusterApi:
    """The endpoints, for any engine. `alarms`: what the apps on this node want an operator to know now."""

    def __init__(
        self,
        identity: Identity,
        view: ClusterView,
        members: MemberAdministration,
        fleet: Fleet,
        clock: Clock,
        alarms: Callable[[], list[str]] = list,
    ) -> None:
        self._alarms = alarms
        self._identity = identity
        self._view = view
        self._members = members
        self._fleet = fleet
        self._clock = clock
        self._started_s = clock.monotonic_s()

    def mount(self, api: FastAPI) -> None:
        router = APIRouter(prefix=PREFIX, tags=["cluster"])
        router.get("/node")(self.node)
        router.get("/status")(self.status)
        router.get("/members")(self.members)
        router.post("/members", status_code=201)(self.add)
        router.post("/members/{name}/promote")(self.promote)
        router.delete("/members/{name}")(self.remove)
        router.post("/transfer")(self.transfer)
        api.include_router(router)

    async def node(self) -> NodeStatus:
        """This node alone, as it sees itself."""
        status = await self._view.node(self._identity, round(self._clock.monotonic_s() - self._started_s, 3))
        return status.model_copy(update={"alarms": self._alarms()})

    async def status(self) -> ClusterStatus:
        """Every node's word, and who did not answer. It needs no leader."""
        own = await self.node()
        answers = await self._fleet.ask_all(PREFIX + "/node", STATUS_TIMEOUT_S)
        reports = {answer.node.name: report_of(answer) for answer in answers}
        reports[own.name] = NodeReport(name=own.name, url=own.url, status=own)
        for member in own.members:
            silent = NodeReport(name=member, url="", error="no answer: it is not among the nodes that are up")
            reports.setdefault(member, silent)
        leader = self._view.leader(own, reports.values())
        return ClusterStatus(leader=leader, nodes=[reports[name] for name in sorted(reports)])

    async def members(self) -> MemberList:
        """Who is a member, how far each is, and who can be reached, as the leader sees it."""
        return await self._members.list()

    async def add(self, wanted: AddMember) -> MemberList:
        """Add a learner: it gets everything and has no vote. Start it with `--cluster-state join`."""
        return await self._members.add(wanted)

    async def promote(self, name: Name) -> MemberList:
        """Make a learner that has caught up a voter."""
        return await self._members.promote(name)

    async def remove(self, name: Name) -> MemberList:
        """Remove a member for good: it stops, and its name is never used again. A leader hands over first."""
        return await self._members.remove(name)

    async def transfer(self, wanted: Transfer) -> Transferred:
        """Let another voter lead."""
        return await self._members.transfer(wanted)


def report_of(answer: FleetAnswer) -> NodeReport:
    """A node's answer as a report; one that makes no sense is an error of that node's."""
    name, url = answer.node.name, answer.node.url
    if answer.error is not None:
        return NodeReport(name=name, url=url, error=answer.error)
    try:
        status = NodeStatus.model_validate(answer.body)
    except ValidationError as error:
        return NodeReport(name=name, url=url, error=f"an answer that makes no sense: {error.error_count()} errors")
    if status.name != name:
        return NodeReport(name=name, url=url, error=f"{status.name} answers there, not {name}")
    return NodeReport(name=name, url=url, status=status)


def agreed_leader(voters: Sequence[str], reports: Iterable[NodeReport]) -> str:
    """The leader that a majority of `voters` names, all in the same term; empty when there is none."""
    votes = Counter(
        (report.status.term, report.status.leader)
        for report in reports
        if report.status is not None and report.status.leader and report.name in voters
    )
    for (_, leader), count in votes.items():
        if count > len(voters) // 2:
            return leader
    return ""
