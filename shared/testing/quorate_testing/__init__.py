"""A control plane for the tests of services: a node with the real apps in the test's own process.

    with quorate_testing.node() as node:
        node.publish("greeter/settings.yaml", "greeting: Hi")
        node.add_instance("inventory", port=9001)
        with node.away():
            ...

pytest finds the fixture `quorate_node` by itself. The node runs on a thread with an event loop of its own, so it
answers tests with and without one, and it is there while a test blocks its loop.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quorate_testing.running_node import TestNode, node

__all__ = ["TestNode", "node"]


def __getattr__(name: str) -> Any:
    """Imported on first use: pytest loads this package in every run, whether the run needs a node or not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("quorate_testing.running_node"), name)
