"""What is read from wrk, and what is asked of it."""

import pytest

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures, figures_line, parse_figures
from benchmarks.wrk import LUA_FOLDER, command_line

# As wrk 4.1.0 printed it, with the line of report.lua at the end.
OUTPUT = """\
Running 2s test @ http://127.0.0.1:18080/hello/world
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.02ms    1.35ms  14.63ms   77.10%
    Req/Sec    21.05k     1.47k   23.67k    70.00%
  41872 requests in 2.00s, 11.22MB read
Requests/sec:  20928.41
Transfer/sec:      5.61MB
figures {"requests": 41872, "duration_us": 2000725, "bytes": 11765000, "p50_us": 2783, "p99_us": 9277, \
"max_us": 14630, "connect_errors": 0, "read_errors": 0, "write_errors": 0, "timeouts": 0, "bad_statuses": 0}
"""


def test_the_figures_are_read_in_full_precision() -> None:
    figures = parse_figures(OUTPUT)
    assert figures == LoadFigures(
        requests=41872,
        duration_s=2.000725,
        p50_ms=2.783,
        p99_ms=9.277,
        max_ms=14.63,
        failed=0,
        extra={"bytes": 11765000},
    )
    assert figures.requests_per_s == pytest.approx(20928.4, abs=0.1)


@pytest.mark.parametrize("kind", ["connect_errors", "read_errors", "write_errors", "timeouts", "bad_statuses"])
def test_every_kind_of_failure_counts(kind: str) -> None:
    assert parse_figures(OUTPUT.replace(f'"{kind}": 0', f'"{kind}": 7')).failed == 7


def test_output_without_figures_is_no_measurement() -> None:
    with pytest.raises(BenchmarkFailed, match="unable to connect"):
        parse_figures("unable to connect to 127.0.0.1:9 Connection refused")


def test_no_answer_at_all_is_no_measurement() -> None:
    silent = OUTPUT.replace('"requests": 41872', '"requests": 0').replace('"timeouts": 0', '"timeouts": 64')
    with pytest.raises(BenchmarkFailed, match=r"no answer at all.*64"):
        parse_figures(silent)


def test_the_command_names_its_script_and_hands_it_arguments() -> None:
    command = command_line("wrk", "http://127.0.0.1:1/x", 64, 3, "post_bodies.lua", ["bodies.txt"])
    assert command[-3:] == ["http://127.0.0.1:1/x", "--", "bodies.txt"]
    assert command[command.index("--connections") + 1] == "64"
    assert command[command.index("--duration") + 1] == "3s"
    assert command[command.index("--script") + 1] == str(LUA_FOLDER / "post_bodies.lua")
    assert (LUA_FOLDER / "post_bodies.lua").is_file()


def test_a_generator_of_our_own_says_the_same_in_the_same_way() -> None:
    line = figures_line(500, 2.5, (0.001, 0.0025, 0.004), {"read_errors": 2, "timeouts": 1}, puts=50)
    assert parse_figures(f"a reason\n{line}\n") == LoadFigures(
        requests=500, duration_s=2.5, p50_ms=1.0, p99_ms=2.5, max_ms=4.0, failed=3, extra={"puts": 50}
    )
