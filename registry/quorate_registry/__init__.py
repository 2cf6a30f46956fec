"""Service registry: instances, leases, watches; an app mounted on a node."""
