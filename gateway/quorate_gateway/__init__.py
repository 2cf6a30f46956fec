"""API gateway: data plane, routes, snapshots, admin API."""
