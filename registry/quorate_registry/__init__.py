"""The service registry, an app mounted on a node: instances that live by leases, lists that say how fresh they are,
and watches that resume by revision. `RegistryApp` is what a node finds by the entry-point group `quorate.apps`."""

from quorate_registry.app import RegistryApp

__all__ = ["RegistryApp"]
