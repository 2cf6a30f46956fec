"""A node in the test's process: the real registry and config center, a clock to move, faults on demand."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import quorate_testing
from pydantic import BaseModel
from quorate_core.errors import DeadlineExceeded, InvalidContent, InvalidRequest, NotFound, NotProposed
from quorate_sdk import Client
from quorate_sdk.wire import Instance
from quorate_testing import TestNode
from quorate_testing.running_node import running_thread
from quorate_testing.served_node import ServedNode

LIVE = "live-1"
FAKE = "inventory-9001"


class Settings(BaseModel):
    greeting: str = "Hello"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestNode]:
    with quorate_testing.node(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture(autouse=True)
def runtime_folder(node: TestNode, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in node.environment.items():
        monkeypatch.setenv(name, value)


def is_fresh(found: list[Instance]) -> bool:
    return [(instance.stale, instance.takes_traffic) for instance in found] == [(False, True)]


def is_over(found: list[Instance]) -> bool:
    """Gone, or still shown and marked, as the guard against mass removal has it."""
    return all(instance.stale for instance in found)


def test_an_instance_is_added_and_removed(node: TestNode) -> None:
    added = node.add_instance("stock", 9001, zone="a", metadata={"k": "v"})
    assert (added.id, added.zone, added.metadata) == ("stock-9001", "a", {"k": "v"})
    assert [found.id for found in node.wait_for("stock", is_fresh)] == ["stock-9001"]
    node.remove_instance("stock", "stock-9001")
    assert node.wait_for("stock", lambda found: not found) == []
    with pytest.raises(NotFound):
        node.remove_instance("stock", "stock-9001")


def test_what_the_node_refuses_is_raised_as_what_it_is(node: TestNode) -> None:
    with pytest.raises(InvalidRequest, match="service"):
        node.add_instance("Not a name!", 9001)
    with pytest.raises(InvalidContent, match="line 1"):
        node.publish("greeter/bad.yaml", "a: [")


def test_the_clock_ends_the_leases_of_those_who_send_no_heartbeats(node: TestNode) -> None:
    node.add_instance("inventory", 9001, ttl_s=10)
    node.wait_for("inventory", is_fresh)
    node.advance(9)
    assert is_fresh(node.instances("inventory"))
    began_s = time.monotonic()
    node.advance(2)
    node.wait_for("inventory", is_over)
    assert time.monotonic() - began_s < 9, "no real time to live has passed"


def test_an_hour_takes_no_time(node: TestNode) -> None:
    node.add_instance("patient", 9001, ttl_s=3_600)
    node.advance(3_500)
    assert is_fresh(node.wait_for("patient", is_fresh))
    node.advance(200)
    node.wait_for("patient", is_over)


def test_a_lease_is_lost_on_demand(node: TestNode) -> None:
    node.add_instance("lossy", 9001)
    node.wait_for("lossy", is_fresh)
    node.lose_lease("lossy", "lossy-9001")
    node.wait_for("lossy", is_over)
    with pytest.raises(NotFound):
        node.lose_lease("lossy", "lossy-9001")


async def test_a_live_instance_that_lost_its_lease_registers_again(node: TestNode) -> None:
    async with Client.from_environment() as client:
        registration = await client.register(service="live", instance_id=LIVE, host="127.0.0.1", port=9001, ttl_s=2)
        first = registration.revision
        node.advance(3)
        found = await asyncio.to_thread(
            node.wait_for, "live", lambda found: is_fresh(found) and found[0].revision > first
        )
        assert [instance.id for instance in found] == [LIVE]


async def test_settings_come_and_are_kept_while_the_node_is_away(node: TestNode) -> None:
    changed = asyncio.Event()
    async with Client.from_environment() as client:
        settings = client.config(Settings, "greeter/settings.yaml")
        settings.subscribe(lambda _, __: changed.set())
        node.publish("greeter/settings.yaml", "greeting: Hi")
        async with asyncio.timeout(10):
            await changed.wait()
        with node.away():
            assert settings.current.greeting == "Hi"
            async with Client.from_environment() as late:
                assert late.config(Settings, "greeter/settings.yaml").current.greeting == "Hello"


def test_a_node_that_is_away_refuses_connections_and_comes_back_as_it_was(node: TestNode) -> None:
    node.add_instance("lasting", 9001)
    with node.away(), pytest.raises(httpx.ConnectError):
        node.instances("lasting")
    assert [found.id for found in node.instances("lasting")] == ["lasting-9001"]


def test_a_node_that_refuses_writes_still_answers_reads(node: TestNode) -> None:
    node.add_instance("readable", 9001)
    with node.refusing_writes():
        with pytest.raises(NotProposed, match="refuse writes"):
            node.add_instance("readable", 9002)
        assert [found.id for found in node.instances("readable")] == ["readable-9001"]
    node.add_instance("readable", 9002)


def test_a_slow_node_answers_late(node: TestNode) -> None:
    with node.slow(0.3):
        began_s = time.monotonic()
        node.instances("anything")
        assert time.monotonic() - began_s >= 0.3


def test_it_answers_while_the_test_blocks_its_event_loop(node: TestNode) -> None:
    async def block() -> list[Instance]:
        return node.instances("anything")

    assert asyncio.run(block()) == []


def test_waiting_for_what_does_not_come_says_what_is_there(node: TestNode) -> None:
    node.add_instance("alone", 9001)
    with pytest.raises(DeadlineExceeded, match="alone-9001"):
        node.wait_for("alone", lambda found: len(found) == 2, timeout_s=0.2)


def test_what_breaks_inside_fails_the_test(tmp_path: Path) -> None:
    node = ServedNode(tmp_path)
    with pytest.raises(RuntimeError, match="a defect"), running_thread(node):
        node.failures.append(RuntimeError("a defect"))


def test_nothing_of_it_is_left_at_the_end(tmp_path: Path) -> None:
    before = threading.active_count()
    with quorate_testing.node(tmp_path / "node") as node:
        url = node.url
    assert threading.active_count() <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/readyz", trust_env=False)
