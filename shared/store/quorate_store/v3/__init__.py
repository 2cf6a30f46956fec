"""etcd's v3 JSON API on a `Store`, so that clients of that API work unmodified: `mount_v3`."""

from quorate_store.v3.endpoints import mount_v3

__all__ = ["mount_v3"]
