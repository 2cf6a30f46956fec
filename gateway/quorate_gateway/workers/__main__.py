"""`python -m quorate_gateway.workers NAME CHANNEL LISTENER MEMORY`: one worker, which only the first process starts.

NAME is for those who look at processes; the others are descriptors.
"""

import sys

from quorate_core.process import Stop, run_process

from quorate_gateway.workers.worker import main


async def _main(stop: Stop) -> None:
    _, _name, channel, listener, memory = sys.argv
    await main(stop, int(channel), int(listener), int(memory))


if __name__ == "__main__":
    run_process(_main)
