"""Most of a service vanishes at once, on three real nodes with real processes: no list is ever empty because heartbeats
do not come, who is dead is gone soon, who is not is fresh again by itself, and protection ends in every case."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx
import pytest
from support import plain_http
from support.fault_discovery import Truth
from support.fault_services import ServiceProcess, service_processes
from support.node_processes import NodeCluster, node_cluster, until
from support.registered_service import SERVICE

pytestmark = pytest.mark.timeout(240)

TTL_S = 2
INSTANCES = 5
LOOK_INTERVAL_S = 0.02
GONE_S_MAX = TTL_S + 5.0
"""The time to live, a lease that ends late, two probes, and a machine that is busy with other tests."""
HOLD_S = 10
PROBED_MIN = 3 * INSTANCES
LIST = f"/v1/registry/default/services/{SERVICE}"


class Seen(NamedTuple):
    at_s: float
    node: str
    ids: frozenset[str]
    stale: frozenset[str]
    is_protected: bool
    revision: int


def look(url: str, node: str = "") -> Seen:
    body = plain_http.get(url + LIST, params={"consistency": "stale"}, timeout=5).json()
    instances = body["instances"]
    return Seen(
        time.monotonic(), node, frozenset(item["id"] for item in instances),
        frozenset(item["id"] for item in instances if item.get("stale")), body["is_protected"], body["revision"],
    )  # fmt: skip


class Observer:
    """Looks at every node's list all the time, from `with` to its end."""

    def __init__(self, cluster: NodeCluster) -> None:
        self.seen: list[Seen] = []
        self._ends = threading.Event()
        self._threads = [
            threading.Thread(target=self._look_at, args=(node.name, node.url), daemon=True) for node in cluster.nodes
        ]

    def _look_at(self, node: str, url: str) -> None:
        while not self._ends.wait(LOOK_INTERVAL_S):
            try:
                self.seen.append(look(url, node))
            except httpx.HTTPError:
                continue

    def __enter__(self) -> "Observer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(10)

    def nodes_agree(self) -> None:
        """At one revision every node shows the same."""
        shown: dict[int, tuple[frozenset[str], frozenset[str], bool]] = {}
        for seen in self.seen:
            assert shown.setdefault(seen.revision, seen[2:5]) == seen[2:5], seen


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    with node_cluster(tmp_path_factory.mktemp("mass-removal"), 3) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture(scope="module")
def all_services(cluster: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServiceProcess]]:
    urls = [node.url for node in cluster.nodes]
    folder = tmp_path_factory.mktemp("services")
    services = [ServiceProcess(f"{SERVICE}-{n}", folder, urls, Truth(), ttl_s=TTL_S) for n in range(1, INSTANCES + 1)]
    with service_processes(*services):
        yield services


@pytest.fixture
def services(cluster: NodeCluster, all_services: list[ServiceProcess]) -> list[ServiceProcess]:
    """All of them registered and fresh on all nodes."""
    until_shown(cluster, [service.name for service in all_services])
    return all_services


def until_shown(cluster: NodeCluster, ids: list[str], stale: bool = False, within_s: float = 30.0) -> None:
    """Until every node shows just these, all of them stale or none."""

    def shows() -> bool:
        wanted = (frozenset(ids), frozenset(ids if stale else ()), stale)
        return all(look(node.url)[2:5] == wanted for node in cluster.nodes)

    until(f"every node shows {ids}, stale: {stale}", shows, within_s)


def metric(cluster: NodeCluster, line: str) -> float:
    """The sum over all nodes."""
    total = 0.0
    for node in cluster.nodes:
        for text in plain_http.get(node.url + "/metrics", timeout=5).text.splitlines():
            if text.startswith(line + " "):
                total += float(text.rsplit(" ", 1)[1])
    return total


GUARDED = "quorate_registry_guarded_services"
CONNECTED = 'quorate_registry_probes_total{finding="connected"}'


def test_a_partition_of_all_heartbeats_keeps_everybody_listed_and_fresh_again_by_themselves(
    cluster: NodeCluster, services: list[ServiceProcess]
) -> None:
    """SIGSTOP stops heartbeats, and leaves the ports: connections to them are taken, as when only the way from the
    instances to the nodes is cut."""
    ids = [service.name for service in services]
    probed = metric(cluster, CONNECTED)
    with Observer(cluster) as observer:
        for service in services:
            service.pause()
        until_shown(cluster, ids, stale=True)
        until("its owner has put the guard key", lambda: metric(cluster, GUARDED) == 1, 30.0)
        protected_s = time.monotonic()
        until("they are probed", lambda: metric(cluster, CONNECTED) - probed >= PROBED_MIN, 30.0)
        for service in services:
            service.resume()
        until_shown(cluster, ids)
    # Before the service is protected, which it is from its third lapse on, those that lapse first are hidden.
    assert min(len(seen.ids) for seen in observer.seen) > INSTANCES // 2
    # From then on nobody is hidden, though they come back one by one, and protection would end with the third.
    assert {len(seen.ids) for seen in observer.seen if seen.at_s > protected_s} == {INSTANCES}
    until("the guard key is taken away", lambda: metric(cluster, GUARDED) == 0, 30.0)
    observer.nodes_agree()


def test_protection_ends_though_ports_answer_and_who_lives_comes_back(
    cluster: NodeCluster, services: list[ServiceProcess]
) -> None:
    settings = {"hold_s": HOLD_S}
    plain_http.put(cluster.nodes[0].url + LIST + "/settings", json=settings, timeout=5).raise_for_status()
    for service in services:
        service.pause()
    until_shown(cluster, [service.name for service in services], stale=True)
    began_s = time.monotonic()
    until_shown(cluster, [], within_s=HOLD_S + 10)
    assert time.monotonic() - began_s > HOLD_S - TTL_S - 1
    assert metric(cluster, 'quorate_registry_reaped_total{reason="hold ended"}') == INSTANCES
    for service in services:
        service.resume()
    until_shown(cluster, [service.name for service in services])


def test_most_of_a_service_killed_at_once_is_gone_soon_and_no_list_is_ever_empty(
    cluster: NodeCluster, services: list[ServiceProcess], show: Callable[[str], None]
) -> None:
    *killed, survivor = services
    with Observer(cluster) as observer:
        began_s = time.monotonic()
        for service in killed:
            service.kill()
        until_shown(cluster, [survivor.name], within_s=GONE_S_MAX)
        gone_s = time.monotonic() - began_s
    assert all(survivor.name in seen.ids and survivor.name not in seen.stale for seen in observer.seen)
    observer.nodes_agree()
    assert metric(cluster, 'quorate_registry_reaped_total{reason="refused"}') >= 1
    show(f"{len(killed)} of {INSTANCES} killed: gone from every node after {gone_s:.2f} s")
    for service in killed:
        service.start()


def test_the_last_instance_that_dies_is_gone_too(
    cluster: NodeCluster, services: list[ServiceProcess], show: Callable[[str], None]
) -> None:
    """A service that is dead as a whole is not kept on the list because of its protection."""
    began_s = time.monotonic()
    for service in services:
        service.kill()
    until_shown(cluster, [], within_s=GONE_S_MAX)
    show(f"all of {INSTANCES} killed: gone from every node after {time.monotonic() - began_s:.2f} s")
