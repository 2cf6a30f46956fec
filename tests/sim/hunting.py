"""Hunting planted bugs: each in a process of its own, some at a time."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sim.mutations import Mutation

TESTS = Path(__file__).resolve().parent.parent
WORKERS = 2


@dataclass(frozen=True)
class Catch:
    """`seed` is None when no seed found the bug; `seeds`: how many were tried."""

    name: str
    seed: int | None
    seeds: int
    seconds: float
    broken: str
    diagnosis: str


def hunt(
    mutations: Sequence[Mutation],
    first_seed: int | None,
    timeout_s: float,
    told: Callable[[Catch], None] | None = None,
) -> list[Catch]:
    """From `first_seed` on, or from the seed that each is known by when that is None. Raises CalledProcessError for a
    process that failed, and TimeoutExpired."""

    def one(mutation: Mutation) -> Catch:
        first = mutation.known_seed if first_seed is None else first_seed
        command = [sys.executable, "-m", "sim.mutant", mutation.name, str(first), str(mutation.seeds_max)]
        answer = subprocess.run(command, cwd=TESTS, capture_output=True, check=True, text=True, timeout=timeout_s)
        catch = Catch(**json.loads(answer.stdout))
        if told is not None:
            told(catch)
        return catch

    with ThreadPoolExecutor(WORKERS) as workers:
        return list(workers.map(one, mutations))
