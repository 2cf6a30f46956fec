"""What runs where: `run/state.json`, written by the supervisor at each change and read by every other command.

Its shape is a contract, for scripts too (all times are RFC 3339, UTC):

    {"pid": 4711, "start_ticks": 123456, "started_at": "…", "state": "starting" | "ready" | "stopping",
     "endpoints": ["http://127.0.0.1:8501", …],            every node
     "gateway": "http://127.0.0.1:8080", "admin": "http://127.0.0.1:8090",
     "parts": {"node-1": {"kind": "node" | "gateway" | "order" | "inventory", "pid": 4712, "start_ticks": 123460,
                          "url": "http://127.0.0.1:8501", "state": "ready", "restarts": 0, "log": "…/node-1.log",
                          "reason": ""}, …}}

`state` is "ready" from the moment at which the table of parts is printed. A part's `pid` is 0 while it has no
process; its `state` is one of `quorate_cli.supervision.PartState`, "removed" for a node that the cluster has removed
and that is not started again; its `reason`, the last words of one that has failed and is not back. The file is removed
at a clean end; after a kill it stays, which is why a pid counts only together with `start_ticks`, the kernel's start
time of the process (None where the system does not tell it). The parts' logs lie in the folder that the file describes:
in a copy of that folder the file names processes that are not the copy's own, and there it counts for nothing.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from quorate_cli.layout import Layout, write_atomically


class PartRun(BaseModel):
    model_config = ConfigDict(frozen=True)

    kind: str
    pid: int
    start_ticks: int | None
    url: str
    state: str
    restarts: int
    log: str
    reason: str = ""

    @property
    def is_alive(self) -> bool:
        return is_process(self.pid, self.start_ticks)


class RunState(BaseModel):
    model_config = ConfigDict(frozen=True)

    pid: int
    start_ticks: int | None
    started_at: str
    state: str
    endpoints: list[str]
    gateway: str
    admin: str
    parts: dict[str, PartRun]

    def describes(self, layout: Layout) -> bool:
        """Whether this is about the folder, and not about the one that it was copied from."""
        folders = {Path(part.log).parent.resolve() for part in self.parts.values()}
        return folders == {layout.logs_dir.resolve()}

    @property
    def is_alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return is_process(self.pid, self.start_ticks)

    @property
    def living_parts(self) -> dict[str, PartRun]:
        return {name: part for name, part in self.parts.items() if part.is_alive}


def read_run_state(layout: Layout) -> RunState | None:
    """What the file says of this folder; None when there is none, or one that cannot be relied on: damaged, or copied
    here together with its folder."""
    try:
        state = RunState.model_validate_json(layout.state_file.read_bytes())
    except (OSError, ValidationError):
        return None
    return state if state.describes(layout) else None


def write_run_state(layout: Layout, state: RunState) -> None:
    write_atomically(layout.state_file, state.model_dump_json(indent=1) + "\n", is_durable=False)


def start_ticks_of(pid: int) -> int | None:
    """When the process started, in the kernel's ticks since boot: a pid comes again, this pair does not.

    None when there is no such process, when it has ended and only waits to be reaped, or where there is no /proc.
    """
    try:
        # The second field is the program's name in brackets and may itself hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_process(pid: int, start_ticks: int | None) -> bool:
    """Whether the process that was recorded so still runs."""
    if pid <= 0:
        return False
    if start_ticks is not None:
        return start_ticks_of(pid) == start_ticks
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
