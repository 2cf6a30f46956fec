"""One member of a PySyncObj cluster with a replicated dict, and the load on it: its callers live in its process, as
they do where it is used. It runs in an environment of its own, where nothing of this repository can be imported.

    python pysyncobj_member.py --self HOST:PORT --others HOST:PORT,HOST:PORT --control PORT --folder FOLDER

It listens on the control port for lines of JSON and answers each with one:

    {"do": "status"}                                     {"is_ready": true, "leads": true, "leader": "127.0.0.1:4321"}
    {"do": "put", "key": "a", "value": "b"}              {"error": 0}
    {"do": "get", "key": "a"}                            {"value": "b"}
    {"do": "run", "callers": 64, "seconds": 3, "keys": 10000, "value_bytes": 256, "seed": 1}
                                                         {"requests": …, "duration_us": …, "p50_us": …, …}

In a run each caller puts, waits until its put is answered (applied on this member, and so held by a majority), and puts
again. The callers are callbacks on PySyncObj's own thread, which costs it less than a thread for each.

Journal and dump file are on, as its documentation wants it where data must survive. NB: it writes the journal through a
memory map and calls neither msync nor fsync before it answers, so what a machine that goes down takes with it is not
what it takes from a store that syncs every write.
"""

import argparse
import itertools
import json
import random
import socketserver
import threading
import time
from array import array
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pysyncobj import SyncObj, SyncObjConf  # type: ignore[import-not-found]  # it is in its own environment
from pysyncobj.batteries import ReplDict  # type: ignore[import-not-found]  # it is in its own environment

ANSWER_S_MAX = 30.0
COMMAND_BYTES_MAX = 64 * 1024


class ClosedLoop:
    """Callers that each put, wait for the answer, and put again until the time is over."""

    def __init__(self, values: Any, given: Mapping[str, Any]) -> None:
        source = random.Random(given["seed"])
        self._values = values
        self._callers = int(given["callers"])
        self._seconds = float(given["seconds"])
        self._records = [(f"bench/{n:06}", source.randbytes(given["value_bytes"])) for n in range(given["keys"])]
        self._number = itertools.count()
        self._latencies_s = array("d")
        self._failed = 0
        self._ends_s = 0.0
        self._open = self._callers
        self._done = threading.Event()

    def run(self) -> dict[str, int]:
        begin_s = time.perf_counter()
        self._ends_s = begin_s + self._seconds
        for _ in range(self._callers):
            self._put()
        unanswered = 0 if self._done.wait(self._seconds + ANSWER_S_MAX) else self._open
        duration_s = time.perf_counter() - begin_s
        latencies_s = sorted(self._latencies_s) or [0.0]
        p50_s, p99_s, max_s = (latencies_s[int((len(latencies_s) - 1) * share)] for share in (0.5, 0.99, 1.0))
        return {
            "requests": len(self._latencies_s), "duration_us": round(duration_s * 1e6), "p50_us": round(p50_s * 1e6),
            "p99_us": round(p99_s * 1e6), "max_us": round(max_s * 1e6), "connect_errors": 0, "read_errors": 0,
            "write_errors": self._failed, "timeouts": unanswered, "bad_statuses": 0,
        }  # fmt: skip

    def _put(self) -> None:
        key, value = self._records[next(self._number) % len(self._records)]
        self._values.set(key, value, callback=partial(self._answered, time.perf_counter()))

    def _answered(self, sent_s: float, _result: Any, error: int) -> None:
        now_s = time.perf_counter()
        if error:
            self._failed += 1
        else:
            self._latencies_s.append(now_s - sent_s)
        if now_s < self._ends_s:
            self._put()
            return
        self._open -= 1
        if self._open == 0:
            self._done.set()


class Member:
    def __init__(self, own: str, others: list[str], folder: Path, *, is_batched: bool) -> None:
        self._values = ReplDict()
        configuration = SyncObjConf(
            journalFile=str(folder / "journal"), fullDumpFile=str(folder / "dump"), appendEntriesUseBatch=is_batched
        )
        self._own = own
        self._object = SyncObj(own, others, conf=configuration, consumers=[self._values])

    def answer(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raises KeyError for a command that there is not."""
        return {"status": self._status, "put": self._put, "get": self._get, "run": self._run}[command["do"]](command)

    def _status(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        leader = self._object._getLeader()  # noqa: SLF001 - its documentation names this very method
        name = None if leader is None else str(leader.id)
        return {"is_ready": self._object.isReady(), "leads": name == self._own, "leader": name}

    def _put(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        answered = threading.Event()
        errors: list[int] = []

        def note(_result: Any, error: int) -> None:
            errors.append(error)
            answered.set()

        self._values.set(command["key"], command["value"].encode(), callback=note)
        return {"error": errors[0] if answered.wait(ANSWER_S_MAX) else "no answer"}

    def _get(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        value = self._values.get(command["key"])
        return {"value": None if value is None else value.hex()}

    def _run(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        return ClosedLoop(self._values, command).run()


def serve(member: Member, port: int) -> None:
    """Until the process is ended."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline(COMMAND_BYTES_MAX):
                self.wfile.write(json.dumps(member.answer(json.loads(line))).encode() + b"\n")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", port), Handler) as server:
        server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--self", dest="own", required=True)
    parser.add_argument("--others", required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--unbatched", action="store_true")
    given = parser.parse_args()
    serve(Member(given.own, given.others.split(","), given.folder, is_batched=not given.unbatched), given.control)


if __name__ == "__main__":
    main()
