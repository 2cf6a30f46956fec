"""When an instance is renewed and when it is registered again: decisions without a thread."""

from quorate_sdk.heartbeat import Upkeep
from quorate_sdk.registration import default_instance_id
from quorate_sdk.wire import InstanceRef


def test_heartbeats_come_every_third_of_the_time_to_live_and_drift_apart() -> None:
    assert Upkeep(ttl_s=30).succeeded(spread=0.0) == 10.0
    assert Upkeep(ttl_s=30).succeeded(spread=1.0) == 9.0


def test_failures_are_tried_again_soon_and_never_later_than_the_next_heartbeat() -> None:
    upkeep = Upkeep(ttl_s=3)
    delays = [upkeep.failed(spread=1.0) for _ in range(8)]
    assert delays[:3] == [0.05, 0.1, 0.2]
    assert max(delays) == 1.0
    upkeep.succeeded(spread=0.0)
    assert upkeep.failed(spread=1.0) == 0.05


def test_an_instance_id_made_by_default_is_one_that_the_registry_takes() -> None:
    assert InstanceRef(service="order", id=default_instance_id("order", 8000)).id.startswith("order-")
