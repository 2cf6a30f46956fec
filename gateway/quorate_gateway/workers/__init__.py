"""Several processes that serve one port: `--workers N`.

The first process (`fleet`) binds the port, follows the control plane and has the admin API. Each worker (`worker`) is a
data plane and nothing else. What they have in common:

| what | how |
| --- | --- |
| the port | one listening socket, from which each accepts when it is its turn (`accepting`) |
| routes, endpoints, keys, forced breakers | sent over a socket pair, only what has changed (`feed`, `followed`) |
| rate limits, connections of one client | a table in shared memory (`shared_table`) |
| counters | reported several times a second, and before anybody is answered about them (`reports`) |

Of its own each worker has its connections, pools and endpoints' states, and its breakers' states that are not forced.
"""
