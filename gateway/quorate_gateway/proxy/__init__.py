"""The data plane: protocol callbacks on the event loop, no task a request.

`framing` and `bodies` decide without I/O what bytes mean; `downstream` is a client's connection, `upstream` an
endpoint's pool, `exchange` one request between the two; `plane` owns them all. Those that every request goes through
may run compiled: `quorate_gateway.compiled`.
"""

import os

from quorate_gateway.compiled import VARIABLE, choose

# NB: before any module of this package is imported, and so here.
COMPILED = choose(__path__, os.environ.get(VARIABLE, ""))
"""How the modules run."""
