"""A node with one planted bug in it: `python mutant_node.py NAME` and then a node's flags."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    # NB: in the place of this folder, in which `platform` is not Python's own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from sim.mutations import install
    from support.watch_mutations import WATCH_MUTATIONS

    name, *flags = sys.argv[1:]
    install(next(one for one in WATCH_MUTATIONS if one.name == name))
    sys.argv[1:] = flags
    runpy.run_module("quorate_node", run_name="__main__")
