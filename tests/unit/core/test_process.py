"""Processes: SIGTERM drains, wrong settings exit 78 with one line, and no child outlives its supervisor."""

import os
import signal
import subprocess
import sys
import textwrap

PROGRAM = """
import asyncio
from quorate_core.errors import SettingsError, NotFound
from quorate_core.process import run_process

async def main(stop):
    {body}

run_process(main)
"""
WAIT_AND_SAY = 'print("up", flush=True)\n    await stop.wait()\n    print("drained", flush=True)'


def start(body: str, **options: object) -> subprocess.Popen[str]:
    code = textwrap.dedent(PROGRAM).format(body=body)
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_sigterm_asks_the_process_to_drain() -> None:
    with start(WAIT_AND_SAY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("drained\n", 0)


def test_a_child_drains_when_its_supervisor_is_gone() -> None:
    reading, writing = os.pipe()
    environment = {**os.environ, "QUORATE_LIFELINE_FD": str(reading)}
    with start(WAIT_AND_SAY, pass_fds=(reading,), env=environment) as process:
        os.close(reading)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.close(writing)  # what the kernel does when the supervisor dies
        out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("drained\n", 0)


def test_wrong_settings_end_with_one_line_and_their_own_exit_code() -> None:
    with start('raise SettingsError("--listen: 127.0.0.1:1 is in use")') as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (78, "")
    assert err.strip().splitlines() == ["quorate: --listen: 127.0.0.1:1 is in use"]


def test_an_error_of_the_family_has_no_trace_and_a_failed_part_ends_the_process() -> None:
    with start('stop.fail(NotFound("part x is gone"))') as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "part x is gone" in err
    assert "Traceback" not in err


GROWTH = """
import gc
from quorate_core.process import tame_garbage_collector

tame_garbage_collector()
scans = []

def note(phase, about):
    if phase == "start":
        scans.append((about["generation"], sum(len(gc.get_objects(n)) for n in range(about["generation"] + 1))))

gc.callbacks.append(note)
kept = [[] for _ in range(1_000_000)]
gc.callbacks.clear()
print(max(scanned for _, scanned in scans), *sorted({generation for generation, _ in scans}))
"""


def test_no_scan_for_garbage_looks_at_so_much_that_everybody_waits() -> None:
    """While a node takes in a million objects that stay: 50,000 are 25 ms, or 50 on a slow machine."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, timeout=60, env=os.environ
    )
    scanned_max, *generations = map(int, done.stdout.split())
    assert scanned_max <= 50_000
    assert generations == [0, 1]
