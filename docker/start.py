"""Runs a module as the first process of a container: `python start.py quorate_node`.

The kernel hands the first process only those signals that it has a handler for. Without one, a SIGTERM that comes while
the module is still being imported would be lost, and the engine would wait out its grace period and kill. The module's
own handlers, once they are there, take this one's place.
"""

import runpy
import signal
import sys
from types import FrameType
from typing import NoReturn


def end(number: int, _frame: FrameType | None) -> NoReturn:
    """End as a process ends that does not handle the signal."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    del sys.argv[0]  # the module sees its own command line
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
