"""The sampler, on a real process that works between two signals."""

import json
import os
import signal
import sys
from pathlib import Path

from benchmarks.processes import Process, until
from benchmarks.profiles import summarize
from benchmarks.quorate_processes import SAMPLER

MODULE = """
import signal

def leaf(number):
    return sum(range(number))

def work():
    while True:
        leaf(1000)

print("up", flush=True)
work()
"""


def test_it_samples_between_two_signals_where_processor_time_goes(tmp_path: Path) -> None:
    (tmp_path / "busy_module.py").write_text(MODULE)
    samples = tmp_path / "samples.json"
    command = [sys.executable, "-P", str(SAMPLER), str(samples), "busy_module"]
    with Process("busy", command, [min(os.sched_getaffinity(0))], tmp_path, {"PYTHONPATH": str(tmp_path)}) as process:
        until("it works", lambda: "up" in process.log, [process])
        process.signal(signal.SIGUSR1)
        before_s = process.cpu_s()
        until("it has worked a while", lambda: process.cpu_s() > before_s + 0.3, [process])
        assert not samples.exists()
        process.signal(signal.SIGUSR1)
        until("the samples are written", samples.exists, [process])
    rows = {row.function.rpartition(":")[2]: row for row in summarize(json.loads(samples.read_text()))}
    assert rows["leaf"].own > 0.5
    assert rows["leaf"].total <= 1.0
