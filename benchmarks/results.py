"""RESULTS.md: the tool replaces its own blocks, and leaves alone what people write around them."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.keys import KeysResults
from benchmarks.machine import Machine
from benchmarks.profiles import Profile
from benchmarks.rounds import Results, Scenario, Timing
from benchmarks.tables import bound_lines, comparisons_of, figures_table, keys_table, profile_table, ratios_table

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
FAILURE_CHARS_MAX = 300


def describe_results(scenario: Scenario, results: Results, timing: Timing) -> str:
    """Tables, and what has to be known beside them."""
    parts = [figures_table(scenario, results)]
    comparisons = comparisons_of(scenario, results)
    if comparisons:
        parts += ["Ratios, taken within each round:", ratios_table(comparisons)]
    notes = bound_lines(scenario, results)
    notes += [f"- {text}: {', '.join(about)}" for text, about in results.remarks.items()]
    notes += [f"- failed: {' '.join(text.split())[:FAILURE_CHARS_MAX]}" for text in results.failures]
    if notes:
        parts.append("\n".join(notes))
    parts.append(
        f"Medians of {timing.rounds} round(s) of {timing.measure_s} s after {timing.warm_up_s} s of warm-up, "
        "with the lowest and highest where there is more than one."
    )
    return "\n\n".join(parts)


def describe_keys(results: KeysResults) -> str:
    """The same of the benchmark of many keys."""
    notes = [f"- {text}" for text in results.remarks]
    notes += [f"- failed: {' '.join(text.split())[:FAILURE_CHARS_MAX]}" for text in results.failures]
    rounds = len({each.round for each in results.readings})
    counted = f"{results.keys:,} {results.what}; medians of {rounds} round(s)"
    parts = [
        keys_table(results),
        *(["\n".join(notes)] if notes else []),
        f"{counted}, with the lowest and highest where there are more",
    ]
    return "\n\n".join(parts)


def results_block(described: str, machine: Machine, command: str, now: datetime | None = None) -> str:
    """Everything that the page says of one scenario; `described` are its figures."""
    day = (now or datetime.now(UTC)).date().isoformat()
    facts = "\n".join(f"- {line}" for line in machine.lines())
    return f"Measured on {day} by `{command}`.\n\n{facts}\n\n{described}"


def profile_block(profiles: Sequence[Profile], command: str, now: datetime | None = None) -> str:
    day = (now or datetime.now(UTC)).date().isoformat()
    return "\n\n".join([f"Sampled on {day} by `{command}`.", *(profile_table(each) for each in profiles)])


def replace_block(page: str, name: str, content: str) -> str:
    """The page with the block `name` holding `content`; a page without that block gets it at its end."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    block = f"{begin}\n\n{content.strip()}\n\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: block, page, count=1)
    return f"{page.rstrip()}\n\n{block}\n" if page.strip() else f"{block}\n"


def write_block(name: str, content: str, path: Path = RESULTS) -> None:
    page = path.read_text() if path.exists() else ""
    path.write_text(replace_block(page, name, content))
