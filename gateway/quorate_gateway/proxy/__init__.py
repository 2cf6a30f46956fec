"""The data plane: protocol callbacks on the event loop, no task a request.

`framing` and `bodies` decide without I/O what bytes mean; `downstream` is a client's connection, `upstream` an
endpoint's pool, `exchange` one request between the two; `plane` owns them all.
"""
