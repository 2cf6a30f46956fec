"""The control-plane process: one store member and every app mounted on it.

`run_node` runs one with `NodeSettings`; `python -m quorate_node` does so from a command line.
"""

from quorate_node.bootstrap import run_node
from quorate_node.settings import NodeSettings

__all__ = ["NodeSettings", "run_node"]
