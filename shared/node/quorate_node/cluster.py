"""`/v1/cluster`: what this node is, and what all nodes say of themselves. The models are in `quorate_sdk.wire`."""

from collections import Counter
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, FastAPI
from pydantic import ValidationError
from quorate_core.clock import Clock
from quorate_sdk.wire import ClusterStatus, NodeReport, NodeStatus
from quorate_store.apps import Fleet, FleetAnswer
from quorate_store.port import Store

PREFIX = "/v1/cluster"
STATUS_TIMEOUT_S = 1.0


class ClusterApi:
    """`url` is where others reach this node."""

    def __init__(self, store: Store, fleet: Fleet, url: str, apps: Sequence[str], clock: Clock) -> None:
        self._store = store
        self._fleet = fleet
        self._url = url
        self._apps = list(apps)
        self._clock = clock
        self._started_s = clock.monotonic_s()

    def mount(self, api: FastAPI) -> None:
        router = APIRouter(prefix=PREFIX, tags=["cluster"])
        router.get("/node")(self.node)
        router.get("/status")(self.status)
        api.include_router(router)

    async def node(self) -> NodeStatus:
        """This node alone, as it sees itself."""
        status = await self._store.status()
        return NodeStatus(
            name=status.name, url=self._url, role=status.role, leader=status.leader, term=status.term,
            commit_index=status.commit_index, applied_index=status.applied_index, revision=status.revision,
            store_bytes=status.store_bytes, members=list(status.members), connected=list(status.connected),
            apps=self._apps, uptime_s=round(self._clock.monotonic_s() - self._started_s, 3),
        )  # fmt: skip

    async def status(self) -> ClusterStatus:
        """Every node's word, and who did not answer. It needs no leader."""
        own = await self.node()
        answers = await self._fleet.ask_all(PREFIX + "/node", STATUS_TIMEOUT_S)
        reports = {answer.node.name: report_of(answer) for answer in answers}
        reports[own.name] = NodeReport(name=own.name, url=own.url, status=own)
        for member in own.members:
            silent = NodeReport(name=member, url="", error="no answer: it is not among the nodes that are up")
            reports.setdefault(member, silent)
        return ClusterStatus(
            leader=agreed_leader(own.members, reports.values()), nodes=[reports[name] for name in sorted(reports)]
        )


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


def agreed_leader(members: Sequence[str], reports: Iterable[NodeReport]) -> str:
    """The leader that a majority of `members` names, all in the same term; empty when there is none."""
    votes = Counter(
        (report.status.term, report.status.leader)
        for report in reports
        if report.status is not None and report.status.leader and report.name in members
    )
    for (_, leader), count in votes.items():
        if count > len(members) // 2:
            return leader
    return ""
