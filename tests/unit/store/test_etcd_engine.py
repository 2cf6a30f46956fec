"""What a store elsewhere says of itself."""

import pytest
from quorate_core.clock import ManualClock
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_store.etcd import EtcdStore
from support.scripted_store import Request, scripted_store


@pytest.mark.parametrize(
    ("leader", "is_learner", "role"), [("2", False, "leader"), ("7", False, "follower"), ("7", True, "learner")]
)
async def test_a_member_says_what_it_is(leader: str, is_learner: bool, role: str) -> None:
    async def answer(request: Request) -> None:
        if request.path == "/v3/cluster/member/list":
            request.answer({"members": [{"ID": "2", "name": "second"}]})
        else:
            header = {"cluster_id": "1", "member_id": "2", "revision": "5", "raft_term": "3"}
            request.answer({"header": header, "leader": leader, "isLearner": is_learner})

    async with scripted_store(answer) as server, TaskOwner("test") as tasks:
        store = EtcdStore([HostPort.parse(server.endpoint)], tasks, ManualClock())
        status = await store.status()
        assert (status.name, status.role) == ("second", role)
        await store.close()
