"""Where etcd's v3 JSON API is put together from its areas."""

from fastapi import FastAPI

from quorate_store.port import Store
from quorate_store.v3.administration import V3Administration
from quorate_store.v3.cluster import ClusterEndpoints
from quorate_store.v3.headers import Headers
from quorate_store.v3.health import HealthEndpoints
from quorate_store.v3.kv import KvEndpoints
from quorate_store.v3.lease import LeaseEndpoints
from quorate_store.v3.maintenance import MaintenanceEndpoints
from quorate_store.v3.reserved import Guard
from quorate_store.v3.watch import WatchEndpoints


def mount_v3(
    api: FastAPI,
    store: Store,
    cluster_id: str,
    administration: V3Administration | None = None,
    platform_credential: str = "",
) -> None:
    """Serve `store` under `/v3`. Keys under `quorate/` can be read here, and written only with the credential.

    `administration` is None on a node that is no member of the store: what only a member can do is then refused.
    """
    headers, guard = Headers(store, cluster_id), Guard(platform_credential)
    KvEndpoints(store, headers, guard).mount(api)
    LeaseEndpoints(store, headers, guard).mount(api)
    WatchEndpoints(store, headers).mount(api)
    ClusterEndpoints(headers, administration).mount(api)
    MaintenanceEndpoints(store, headers, administration).mount(api)
    HealthEndpoints(store).mount(api)
