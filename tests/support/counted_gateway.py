"""A gateway that says on SIGUSR1 what it holds: `python counted_gateway.py FILE` and then a gateway's flags.

The file gets one line of JSON: the tasks of its event loop, and how many live objects there are of the types that a
leak would pile up. It is written whole under another name first, so that whoever reads it never sees half of it.
"""

import asyncio
import gc
import json
import signal
import sys
from collections import Counter
from pathlib import Path

COUNTED = ("ClientConnection", "Exchange", "UpstreamConnection", "Tunnel", "CompiledRoute", "Snapshot", "EndpointPool")


def write_counts(path: Path) -> None:
    gc.collect()
    types = Counter(type(one).__name__ for one in gc.get_objects())
    counts = {"tasks": len(asyncio.all_tasks()), **{name: types[name] for name in COUNTED}}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(counts))
    unfinished.replace(path)


if __name__ == "__main__":
    # NB: in the place of this folder, in which `platform` is not Python's own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from quorate_core.process import Stop, run_process
    from quorate_gateway.bootstrap import main

    counts_file = Path(sys.argv.pop(1))

    async def counted(stop: Stop) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write_counts, counts_file)
        await main(stop)

    run_process(counted)
