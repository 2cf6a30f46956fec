"""Members run on uvloop; asyncio's own loop differs in when it writes, and in what it does about full buffers. So what
talks to peers is tested on both."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ON_BOTH = {"test_peer_fuzz.py", "test_snapshot_streams.py", "test_tcp.py", "test_tcp_members.py"}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ON_BOTH:
        factories["uvloop"] = uvloop.new_event_loop
    return factories
