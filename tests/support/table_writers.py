"""Processes that write to a table in shared memory: `python table_writers.py WHAT DESCRIPTOR [COUNT]`.

count       say that it is there; when it is told to, add COUNT to one record, one by one
wholes      write records whose floats are all the same number, counting up, until somebody kills it
hold        take the lock of a key, say so, and keep it
crash       for each line of a write: begin one, and be killed by SIGKILL before that line; say what is read then
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # NB: in the place of this folder, in which `platform` is not Python's own.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

if TYPE_CHECKING:
    from quorate_gateway.workers.shared_table import SharedTable, SharedTables

KEY = b"192.0.2.1"
IDENTITY = b"written"
WHOLE_FLOATS = 12
FAR_S = 1e9
OLD = (1.0, 1.0, 1.0)
NEW = (2.0, 2.0, 2.0, 2.0)
CRASHES_MAX = 500


def add(table: "SharedTable", count: int) -> None:
    for _ in range(count):
        with table.locked(KEY):
            record = table.get(KEY)
            table.put(KEY, ((0.0 if record is None else record[0]) + 1,), FAR_S, 0.0)


def write_wholes(table: "SharedTable") -> None:
    for number in itertools.count(1):
        with table.locked(KEY):
            table.put(KEY, (float(number),) * WHOLE_FLOATS, FAR_S, float(number))


def hold(table: "SharedTable") -> None:
    with table.locked(KEY):
        say("held")
        signal.pause()


def crashes(tables: "SharedTables") -> Iterator[dict[str, object]]:
    """What is read after each; the last one was not killed. Once over a record, and once where there is none."""
    for former in (OLD, None):
        for line in range(1, CRASHES_MAX):
            table = tables(b"crash %d %a" % (line, former is None))
            if former is not None:
                with table.locked(KEY):
                    table.put(KEY, former, FAR_S, 0.0)
            killed = _write_and_die(table, line)
            with table.locked(KEY):
                found = table.get(KEY)
            yield {"former": former, "killed": killed, "found": found, "waited_in_vain": tables.locks.passed_over}
            if not killed:
                break


def _write_and_die(table: "SharedTable", at_line: int) -> bool:
    """Whether it was killed before it had written."""
    child = os.fork()
    if not child:
        _kill_at_line(at_line)
        with table.locked(KEY):
            table.put(KEY, NEW, FAR_S, 1.0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _kill_at_line(at_line: int) -> None:
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith("shared_table.py"):
            return None
        if event == "line" and next(lines) == at_line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def say(what: str) -> None:
    print(what, flush=True)  # noqa: T201 - it is what whoever started it reads


def main(what: str, descriptor: int, count: int) -> None:
    from quorate_gateway.workers.shared_memory import SharedMemory
    from quorate_gateway.workers.shared_table import SharedTables

    tables = SharedTables(SharedMemory(descriptor))
    table = tables(IDENTITY)
    if what == "count":
        say("ready")
        sys.stdin.readline()
        add(table, count)
        say("done")
    elif what == "wholes":
        write_wholes(table)
    elif what == "hold":
        hold(table)
    elif what == "crash":
        for found in crashes(tables):
            say(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
