"""For all tests: hypothesis gives its examples no time of their own.

Its deadline of 200 ms is of the clock on the wall, which says how busy the machine is, and nothing of the code: an
example that waited for a processor would fail, and not fail again. Whatever must be quick has a test of its own.
"""

from hypothesis import settings

settings.register_profile("quorate", deadline=None)
settings.load_profile("quorate")
