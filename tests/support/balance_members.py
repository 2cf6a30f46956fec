"""Members for balancers, and what the ring does with keys, in figures: the tables of docs/internals/balancing.md.

python -m support.balance_members    # from tests/: print the tables
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt

from quorate_resilience.balancers import Balancer, PeakLatency
from quorate_resilience.hash_ring import HashRing, place_of

KEYS = 100_000
RING_MEMBERS = 10
VIRTUAL_NODES = (1, 10, 50, 100, 200, 500, 1_000)


@dataclass(eq=False, slots=True)
class Server:
    """Equal to itself alone, as endpoints are."""

    identity: str
    weight: int = 100
    zone: str = ""
    active: int = 0
    latency: PeakLatency = field(default_factory=PeakLatency)


def servers(*weights: int, zone: str = "") -> tuple[Server, ...]:
    return tuple(Server(f"{zone}s{number}", weight, zone) for number, weight in enumerate(weights))


def draw(seed: int = 1) -> Callable[[], float]:
    return random.Random(seed).random


def picks(balancer: Balancer[Server], members: Sequence[Server], count: int) -> list[str]:
    """Whom `count` requests go to that all have other keys, each done before the next comes."""
    found = []
    for number in range(count):
        picked = balancer.pick(members, (), b"key-%d" % number, float(number))
        assert picked is not None
        found.append(picked.identity)
    return found


def keys_of(ring: HashRing[Server], count: int = KEYS) -> list[str]:
    """Who has each of the keys."""
    return [ring.owner(ring.index_of(place_of(b"key-%d" % number))).identity for number in range(count)]


def ring_of(members: Sequence[Server], virtual_nodes: int) -> HashRing[Server]:
    ring: HashRing[Server] = HashRing(virtual_nodes)
    ring.follow(members)
    return ring


def spread_row(virtual_nodes: int) -> tuple[float, float, float]:
    """The standard deviation of the shares, the smallest and the largest, all in parts of the mean."""
    counts = Counter(keys_of(ring_of(servers(*[100] * RING_MEMBERS), virtual_nodes)))
    mean = KEYS / RING_MEMBERS
    shares = [counts[f"s{number}"] / mean for number in range(RING_MEMBERS)]
    return sqrt(sum((share - 1) ** 2 for share in shares) / RING_MEMBERS), min(shares), max(shares)


def change_row(virtual_nodes: int) -> tuple[float, int, float, float]:
    """When one of the members goes: what part of all keys moves, to how many others, which part of these the one that
    gets most has, and what part of all keys moves although its owner stayed."""
    members = servers(*[100] * RING_MEMBERS)
    before = keys_of(ring_of(members, virtual_nodes))
    after = keys_of(ring_of(members[1:], virtual_nodes))
    heirs = Counter(new for old, new in zip(before, after, strict=True) if old == "s0")
    needless = sum(old not in ("s0", new) for old, new in zip(before, after, strict=True))
    moved = sum(heirs.values())
    return moved / KEYS, len(heirs), max(heirs.values()) / moved, needless / KEYS


def spread_table() -> str:
    lines = ["| virtual nodes | standard deviation | smallest share | largest share |", "| --- | --- | --- | --- |"]
    for virtual_nodes in VIRTUAL_NODES:
        deviation, least, most = spread_row(virtual_nodes)
        lines.append(f"| {virtual_nodes} | {deviation:.1%} | {least:.2f} | {most:.2f} |")
    return "\n".join(lines)


def change_table() -> str:
    lines = [
        "| virtual nodes | keys that move | to how many others | the most to one | of members that stayed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for virtual_nodes in VIRTUAL_NODES:
        moved, heirs, most, needless = change_row(virtual_nodes)
        lines.append(f"| {virtual_nodes} | {moved:.1%} | {heirs} | {most:.0%} | {needless:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{spread_table()}\n\n{change_table()}\n")
