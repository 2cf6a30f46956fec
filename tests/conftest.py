"""For all tests: hypothesis gives its examples no time of their own, and the gateway runs from its source.

Hypothesis's deadline of 200 ms is of the clock on the wall, which says how busy the machine is, and nothing of the
code: an example that waited for a processor would fail, and not fail again. Whatever must be quick has a test of its
own.

Modules of the gateway that were compiled here are used by one stage alone, which sets the variable for it; see
`scripts/run_tests.py`.
"""

import os

from hypothesis import settings

os.environ.setdefault("QUORATE_GATEWAY_COMPILED", "off")  # NB: before anything of the gateway is imported

settings.register_profile("quorate", deadline=None)
settings.load_profile("quorate")
