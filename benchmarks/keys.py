"""Many keys beside etcd: what they cost, and how long it takes to save, compact and restart with them.

The stages are those of `filled_cluster`. A stage that fails leaves no figure, and the next one is tried all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.failures import BenchmarkFailed
from benchmarks.filled_cluster import STAGE_S_MAX, FilledCluster
from benchmarks.measurements import turn_order
from benchmarks.rounds import Bench, Tell
from benchmarks.store_members import EtcdMembers, QuorateMembers, StoreMembers

OURS, PEER = "quorate", "etcd"
ROUNDS_MAX = 3
"""A round with a million keys takes minutes."""


@dataclass(frozen=True)
class Reading:
    """One quantity of one contender in one round."""

    round: int
    contender: str
    quantity: str
    value: float


@dataclass
class KeysResults:
    """`quantities` are in the order in which they were read first. `keys`: how many there are of `what`."""

    keys: int
    readings: list[Reading] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    what: str = "keys"

    @property
    def quantities(self) -> list[str]:
        return list(dict.fromkeys(each.quantity for each in self.readings))

    def values(self, contender: str, quantity: str) -> dict[int, float]:
        """By round."""
        return {
            each.round: each.value for each in self.readings if (each.contender, each.quantity) == (contender, quantity)
        }


class KeysScenario:
    name = "keys"
    summary = "a million keys beside etcd's: memory, snapshot, compaction, restart, pauses (fewer without --full)"

    def title(self, keys: int) -> str:
        return f"Keys: {keys:,} of 256 bytes, three members, filled by transactions of 100 puts"


def run_keys(bench: Bench, keys: int, rounds: int, only: Sequence[str], tell: Tell) -> KeysResults:
    """`only` names the contenders to run; none means all."""
    results = KeysResults(keys)
    chosen = [name for name in (PEER, OURS) if not only or name in only]
    with httpx.Client(trust_env=False, timeout=STAGE_S_MAX) as http:
        for number in range(min(rounds, ROUNDS_MAX)):
            for name in turn_order(chosen, number):
                try:
                    with (QuorateMembers if name == OURS else EtcdMembers)(bench, http) as members:
                        _take_turn(bench, members, http, number, results, tell)
                except (BenchmarkFailed, httpx.HTTPError) as error:
                    _fail(results, number, name, "start", error, tell)
    return results


def _take_turn(
    bench: Bench, members: StoreMembers, http: httpx.Client, number: int, results: KeysResults, tell: Tell
) -> None:
    cluster = FilledCluster(bench, members, http, results.keys)
    for stage, measure in cluster.stages():
        try:
            if cluster.follow_leader():
                results.remarks.append(f"round {number + 1}, {members.kind}: another member led before {stage}")
            for quantity, value in measure():
                results.readings.append(Reading(number, members.kind, quantity, value))
                tell(f"  {members.kind:<10} {quantity:<60} {value:>12,.2f}")
        except (BenchmarkFailed, httpx.HTTPError) as error:
            _fail(results, number, members.kind, stage, error, tell)


def _fail(results: KeysResults, number: int, name: str, stage: str, error: Exception, tell: Tell) -> None:
    text = f"round {number + 1}, {name}, {stage}: {str(error) or type(error).__name__}"
    results.failures.append(text)
    tell(f"  FAILED: {text}")
