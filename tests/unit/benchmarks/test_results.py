"""Tables, and the page that they are written into."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.failures import BenchmarkFailed
from benchmarks.gateway import LOAD, GatewayScenario
from benchmarks.keys import KeysResults, Reading
from benchmarks.machine import Machine, file_system_of
from benchmarks.measurements import Measurement
from benchmarks.profiles import Profile, ProfileRow, by_package, summarize
from benchmarks.results import describe_keys, describe_results, profile_block, replace_block, results_block, write_block
from benchmarks.rounds import Choice, Results, Timing
from benchmarks.tables import comparisons_of, figures_table, keys_table, profile_table, table
from benchmarks.watch import WatchScenario

SCENARIO, TIMING = GatewayScenario(), Timing(rounds=2, measure_s=3, warm_up_s=1)
NOW = datetime(2026, 1, 2, 23, 0, tzinfo=UTC)
MACHINE = Machine(
    processor="A Processor", cores_total=4, cores_used=(0, 1), memory_mib=8192, kernel="6.1", python="3.11.7",
    libraries={"uvloop": "0.1"}, peers={"nginx": "1.22.1"}, file_system="ext4", sync_ms=0.3, load_before=0.1,
)  # fmt: skip


def measured(contender: str, *rates: float) -> list[Measurement]:
    return [
        Measurement(n, contender, LOAD.name, rate, p50_ms=1.0, p99_ms=2.0, max_ms=9.0, cores_busy=1.0, memory_mib=20)
        for n, rate in enumerate(rates)
    ]


def results() -> Results:
    return Results(
        [*measured("nginx", 40_000, 50_000), *measured("envoy", 20_000), *measured("quorate", 30_000, 30_000)]
    )


def test_columns_are_padded_and_numbers_stand_to_the_right() -> None:
    assert table(["name", "n"], [["a", "100"], ["longer", "7"]], 1).splitlines() == [
        "| name   |   n |",
        "| ------ | --: |",
        "| a      | 100 |",
        "| longer |   7 |",
    ]


def test_figures_are_medians_with_their_spread_where_there_is_one() -> None:
    rows = figures_table(SCENARIO, results()).splitlines()
    nginx, envoy = (next(row for row in rows if f"| {name} " in row) for name in ("nginx", "envoy"))
    assert "45,000 (40,000 to 50,000)" in nginx
    assert "| 20,000 |" in " ".join(envoy.split())
    assert len(rows) == 2 + 3


def test_we_are_compared_with_each_peer_and_the_goals_judged() -> None:
    comparisons = comparisons_of(SCENARIO, results())
    verdicts = {(each.peer, each.figure.value): each.verdict for each in comparisons}
    assert verdicts["nginx", "requests/s"] == "≥ 0.6 met"
    assert verdicts["envoy", "requests/s"] == "≥ 1.5 met"
    assert {each.peer for each in comparisons} == {"nginx", "envoy"}
    assert {each.us for each in comparisons} == {"quorate"}


def test_another_of_ours_is_compared_too_when_it_has_goals_and_was_measured() -> None:
    found = results()
    found.measurements += measured("quorate-compiled", 20_000, 20_000) + measured("quorate-2", 90_000, 90_000)
    judged = {
        (each.us, each.peer): each.verdict
        for each in comparisons_of(SCENARIO, found)
        if each.figure.value == "requests/s"
    }
    assert judged["quorate-compiled", "nginx"] == "≥ 0.6 missed"
    assert judged["quorate", "nginx"] == "≥ 0.6 met"
    assert {us for us, _ in judged} == {"quorate", "quorate-compiled"}


def test_failures_and_remarks_stand_beside_the_figures() -> None:
    text = describe_results(
        SCENARIO,
        replace(results(), remarks={"GET: waited": ["envoy", "nginx"]}, failures=["round 1, haproxy: it\nended"]),
        TIMING,
    )
    assert "- GET: waited: envoy, nginx" in text
    assert "- failed: round 1, haproxy: it ended" in text
    assert "2 round(s) of 3 s after 1 s" in text


def test_nothing_measured_makes_an_empty_table_and_no_ratios() -> None:
    text = describe_results(SCENARIO, Results(failures=["gateway: nginx is missing"]), TIMING)
    assert "nginx is missing" in text
    assert "Ratios" not in text


def test_a_block_says_how_where_and_when() -> None:
    described = describe_results(SCENARIO, results(), TIMING)
    block = results_block(described, MACHINE, "make bench ARGS=gateway", NOW)
    assert block.endswith(described)
    assert "Measured on 2026-01-02 by `make bench ARGS=gateway`." in block
    assert "4 cores (A Processor), of which 0, 1 were used; 8 GiB; Linux 6.1" in block
    assert "nginx 1.22.1" in block
    assert "not quiet" not in block
    noisy = results_block(described, replace(MACHINE, load_before=3.0), "make bench", NOW)
    assert "**not quiet" in noisy


def test_only_the_tool_s_own_block_of_the_page_changes(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n\nBefore.\n\n<!-- begin: a -->\nold\n<!-- end: a -->\n\nAfter.\n")
    write_block("a", r"new \1 text", page)
    write_block("b", "more", page)
    write_block("b", "even more", page)
    assert page.read_text() == (
        "# Results\n\nBefore.\n\n<!-- begin: a -->\n\nnew \\1 text\n\n<!-- end: a -->\n\nAfter.\n\n"
        "<!-- begin: b -->\n\neven more\n\n<!-- end: b -->\n"
    )
    assert replace_block("", "a", "x") == "<!-- begin: a -->\n\nx\n\n<!-- end: a -->\n"


def test_a_function_s_own_share_is_what_stands_innermost_and_recursion_counts_once() -> None:
    stacks = [[3, ["lib/b.py:leaf", "app/a.py:main"]], [1, ["app/a.py:main", "app/a.py:main"]]]
    rows = summarize({"stacks": stacks})
    assert rows == [ProfileRow("lib/b.py:leaf", 0.75, 0.75), ProfileRow("app/a.py:main", 0.25, 1.0)]
    assert by_package(rows) == [("lib", 0.75), ("app", 0.25)]
    with pytest.raises(BenchmarkFailed, match="no sample"):
        summarize({"stacks": []})


def test_a_profile_says_how_much_it_stands_on() -> None:
    profile = Profile("put", 1234.5, 4000, [("app", 1.0)], [ProfileRow("app/a.py:main", 1.0, 1.0)])
    text = profile_table(profile)
    assert "put: 4,000 samples at 1,234 requests/s while sampled" in text
    assert "| app/a.py:main | 100.0% |             100.0% |" in text
    assert "Sampled on 2026-01-02 by `make bench`." in profile_block([profile], "make bench", NOW)


def test_the_file_system_is_that_of_the_deepest_mount() -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /nowhere tmpfs rw 0 0\nover /nowhere/data overlay rw 0 0\n"
    assert file_system_of(Path("/nowhere/data/x"), mounts) == "overlay"
    assert file_system_of(Path("/nowhere/else"), mounts) == "tmpfs"
    assert file_system_of(Path("/nowherebeside"), mounts) == "ext4"


def test_a_bound_is_judged_where_its_load_was_measured() -> None:
    scenario = WatchScenario()
    load = scenario.bounds[0].load
    slow = Measurement(0, "quorate", load, 1e5, p50_ms=9.0, p99_ms=120.0, max_ms=150.0, cores_busy=1.0, memory_mib=20)
    assert f"- quorate, {load}: p99 120.0 ms (≤ 100 ms missed)" in describe_results(scenario, Results([slow]), TIMING)
    assert "≤" not in describe_results(scenario, Results([replace(slow, contender="etcd")]), TIMING)


def test_only_the_loads_that_were_chosen_are_put_on() -> None:
    scenario = WatchScenario()
    assert Choice().loads_of(scenario) == list(scenario.loads)
    assert [load.work for load in Choice(loads=("100 events", "nothing")).loads_of(scenario)] == ["100"]
    assert Choice(loads=("nothing",)).loads_of(scenario) == []


def test_quantities_of_many_keys_stand_beside_each_other_and_ratios_are_taken_within_rounds() -> None:
    readings = [
        Reading(0, "etcd", "restart: s", 2.0), Reading(0, "quorate", "restart: s", 1.0),
        Reading(1, "etcd", "restart: s", 8.0), Reading(1, "quorate", "restart: s", 4.0),
        Reading(0, "quorate", "pauses", 0.0), Reading(2, "quorate", "restart: s", 400.0),
    ]  # fmt: skip
    results = KeysResults(1_000, readings, failures=["round 1, etcd, snapshot: it\nended"], remarks=["another led"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in keys_table(results).splitlines()[2:]]
    assert rows == [
        ["restart: s", "5.00 (2.00 to 8.00)", "4.00 (1.00 to 400.00)", "0.50 (0.50 to 0.50)"],
        ["pauses", "", "0.00", ""],
    ]
    described = describe_keys(results)
    assert "- failed: round 1, etcd, snapshot: it ended" in described
    assert "- another led" in described
    assert "1,000 keys; medians of 3 round(s)" in described
