"""What a node answers to `/v1/cluster` when it stands on an external store: how far that can be reached, and no more.

Such a node keeps nothing and votes on nothing, so there may be as many as clients need, and any of them may vanish. Who
is a member of the store is the store's own business, and is asked and changed there.
"""

from collections.abc import Iterable
from typing import NoReturn

from quorate_core.errors import NotImplementedHere
from quorate_sdk.wire import AddMember, ExternalStore, MemberList, NodeReport, NodeStatus, Transfer, Transferred

from quorate_node.cluster import Identity
from quorate_node.endpoint_probes import EndpointProbes, EndpointState
from quorate_node.store_url import StoreUrl

API_ROLE = "api"


class ExternalView:
    """`cluster.ClusterView`, by what the probes have seen: it asks nobody, so it answers when the store does not."""

    def __init__(self, probes: EndpointProbes) -> None:
        self._probes = probes

    async def node(self, identity: Identity, uptime_s: float) -> NodeStatus:
        """The numbers are those of the most advanced endpoint, as it gave them last."""
        probes = self._probes
        newest = max(probes.states, key=_progress)
        store = ExternalStore(url=str(probes.store_url), leader=probes.leader, endpoints=probes.report())
        return NodeStatus(
            name=identity.name, url=identity.url, role=API_ROLE, leader=store.leader, term=newest.term,
            commit_index=newest.commit_index, applied_index=newest.applied_index, revision=newest.revision,
            store_bytes=newest.store_bytes, members=[],
            connected=[endpoint.address for endpoint in store.endpoints if endpoint.error is None],
            apps=list(identity.apps), uptime_s=uptime_s, store=store,
        )  # fmt: skip

    def leader(self, own: NodeStatus, _reports: Iterable[NodeReport]) -> str:
        """The store has decided that already; the other nodes' words add nothing."""
        return own.leader


def _progress(state: EndpointState) -> tuple[int, int]:
    return state.term, state.revision


class MembersElsewhere:
    """`cluster.MemberAdministration` of a node that has no members to administer."""

    def __init__(self, store_url: StoreUrl) -> None:
        self._store_url = store_url

    async def list(self) -> MemberList:
        self._refuse()

    async def add(self, wanted: AddMember) -> MemberList:
        self._refuse()

    async def promote(self, name: str) -> MemberList:
        self._refuse()

    async def remove(self, name: str) -> MemberList:
        self._refuse()

    async def transfer(self, wanted: Transfer) -> Transferred:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedHere(
            f"this node is no member of the store, it stands on {self._store_url}: ask there who is one, and who leads"
        )
