"""Results as tables that read well on a terminal and are Markdown too."""

from collections.abc import Callable, Sequence

from benchmarks.keys import OURS, PEER, KeysResults
from benchmarks.measurements import Comparison, Figure, Measurement, Spread, compare, spread_of
from benchmarks.profiles import Profile
from benchmarks.rounds import Results, Scenario


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    """Padded Markdown; columns from `numbers_from` on are aligned to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < numbers_from else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * width if n < numbers_from else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    return "\n".join([line(header), f"| {' | '.join(rules)} |", *(line(row) for row in rows)])


def contenders_of(results: Results) -> list[str]:
    """In the order in which they were first measured."""
    return list(dict.fromkeys(each.contender for each in results.measurements))


def figures_table(scenario: Scenario, results: Results) -> str:
    """Each contender under each load: medians, with the lowest and highest of the rounds."""
    columns: list[tuple[str, Callable[[Measurement], float], str]] = [
        ("requests/s", lambda each: each.requests_per_s, ",.0f"),
        ("p50 ms", lambda each: each.p50_ms, ".2f"),
        ("p99 ms", lambda each: each.p99_ms, ".2f"),
        ("max ms", lambda each: each.max_ms, ".2f"),
        ("CPU µs a request", lambda each: each.cpu_us_per_request, ".1f"),
        ("cores busy", lambda each: each.cores_busy, ".2f"),
        ("MiB", lambda each: each.memory_mib, ".0f"),
    ]
    rows = []
    for load in scenario.loads:
        for name in contenders_of(results):
            spreads = [(spread_of(results.measurements, load.name, name, read), form) for _, read, form in columns]
            cells = [cell(spread, form) for spread, form in spreads if spread is not None]
            if cells:
                rows.append([load.name, name, *cells])
    return table(["load", "contender", *(name for name, _, _ in columns)], rows, 2)


def cell(spread: Spread, form: str) -> str:
    """The median, and the lowest and highest where there is more than one."""
    median = format(spread.median, form)
    if spread.count == 1:
        return median
    return f"{median} ({spread.low:{form}} to {spread.high:{form}})"


def comparisons_of(scenario: Scenario, results: Results) -> list[Comparison]:
    """The first of ours against each peer, and so whoever else of ours has goals."""
    sides = dict.fromkeys([scenario.ours[0], *(goal.us for goal in scenario.goals)])
    peers = [name for name in contenders_of(results) if name not in scenario.ours]
    found = [
        compare(results.measurements, load.name, us, peer, figure, scenario.goals)
        for load in scenario.loads
        for us in sides
        for peer in peers
        for figure in Figure
    ]
    return [each for each in found if each is not None]


def ratios_table(comparisons: Sequence[Comparison]) -> str:
    """For the rate more is better, for latencies less."""
    rows = [
        [each.load, f"{each.us} / {each.peer}", each.figure.value, cell(each.ratio, ".2f"), each.verdict]
        for each in comparisons
    ]
    return table(["load", "ratio", "of", "median (lowest to highest)", "goal"], rows, 3)


def bound_lines(scenario: Scenario, results: Results) -> list[str]:
    """What is said of a figure of ours that has to keep a bound by itself."""
    found = []
    for bound in scenario.bounds:
        spread = spread_of(results.measurements, bound.load, bound.us, bound.figure.of)
        if spread is not None:
            found.append(f"- {bound.verdict(spread)}")
    return found


def keys_table(results: KeysResults) -> str:
    """Each quantity of both sides, and ours as a ratio to the peer's, taken within each round."""
    rows = []
    for quantity in results.quantities:
        ours, theirs = results.values(OURS, quantity), results.values(PEER, quantity)
        ratios = [ours[each] / theirs[each] for each in sorted(ours.keys() & theirs.keys()) if theirs[each]]
        shown = [list(theirs.values()), list(ours.values()), ratios]
        rows.append([quantity, *(cell(Spread.of(each), ",.2f") if each else "" for each in shown)])
    return table(["what", PEER, OURS, f"{OURS} / {PEER}"], rows, 1)


def profile_table(profile: Profile) -> str:
    rows = [[row.function, f"{row.own:.1%}", f"{row.total:.1%}"] for row in profile.rows]
    title = f"{profile.load}: {profile.samples:,} samples at {profile.requests_per_s:,.0f} requests/s while sampled"
    packages = table(["package", "share"], [[name, f"{share:.1%}"] for name, share in profile.packages], 1)
    functions = table(["function", "itself", "with what it calls"], rows, 1)
    return f"{title}\n\n{packages}\n\n{functions}"
