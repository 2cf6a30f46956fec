"""`quorate down`: end the platform that runs here, whichever terminal it was started from."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

import typer
from quorate_core.errors import DeadlineExceeded

from quorate_cli.layout import Layout, find_root
from quorate_cli.options import Root
from quorate_cli.run_state import RunState, is_process, read_run_state

CHECK_INTERVAL_S = 0.1
SUPERVISOR_WAIT_S = 60.0
"""Above the sum of what the supervisor itself allows its parts to drain."""
PARTS_WAIT_S = 12.0

app = typer.Typer(add_completion=False)


@app.command()
def down(root: Root = None) -> None:
    """Stop the platform that runs here, in order. Its data is kept.

    Does nothing, and exits with 0, when none runs.
    """
    layout = Layout(find_root(root))
    state = read_run_state(layout)
    if state is not None and state.is_alive:
        _stop_supervisor(state)
    elif state is not None and state.living_parts:
        _wait_for_parts(state)
    else:
        typer.echo(f"No platform runs in {layout.root}.")
        return
    typer.echo("Stopped. The data is kept.")


def _stop_supervisor(state: RunState) -> None:
    typer.echo(f"Stopping the platform (pid {state.pid})")
    _signal(state.pid, signal.SIGTERM)
    if not _wait(lambda: not is_process(state.pid, state.start_ticks), SUPERVISOR_WAIT_S):
        raise DeadlineExceeded(
            f"the supervisor (pid {state.pid}) has not ended within {SUPERVISOR_WAIT_S:.0f} s",
            advice=f"See what it does: quorate logs. Its parts end with it: kill -9 {state.pid}",
        )


def _wait_for_parts(state: RunState) -> None:
    """The supervisor is gone, and its parts end by themselves. Raises DeadlineExceeded naming those that do not."""
    typer.echo(f"The supervisor has gone; waiting for what it left: {', '.join(state.living_parts)}")
    if not _wait(lambda: not state.living_parts, PARTS_WAIT_S):
        left = [f"{name} (pid {part.pid})" for name, part in state.living_parts.items()]
        raise DeadlineExceeded(
            f"not ended within {PARTS_WAIT_S:.0f} s: {', '.join(left)}",
            advice="Look at them, and end them by their pids.",
        )


def _wait(holds: Callable[[], bool], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(CHECK_INTERVAL_S)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
