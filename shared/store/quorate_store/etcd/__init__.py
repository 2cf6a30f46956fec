"""The store in an etcd cluster, or on other nodes of Quorate, by etcd's v3 JSON API. `EtcdStore` is all of it."""

from quorate_store.etcd.engine import EtcdStore

__all__ = ["EtcdStore"]
