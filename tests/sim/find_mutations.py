"""Hunt every planted bug, and say after how many seeds each was found: the campaign's second half.

`python -m sim.find_mutations [FIRST_SEED]`, in the folder of the tests
"""

import sys

from sim.hunting import Catch, hunt
from sim.mutations import MUTATIONS

TIMEOUT_S = 3600.0
NAME_COLUMNS = 66


def main(first_seed: int) -> int:
    catches = hunt(MUTATIONS, first_seed, TIMEOUT_S, tell)
    missed = [catch.name for catch in catches if catch.seed is None]
    sys.stdout.write(f"{len(catches) - len(missed)} of {len(catches)} planted bugs were found\n")
    return int(bool(missed))


def tell(catch: Catch) -> None:
    found = f"found by seed {catch.seed}" if catch.seed is not None else "NOT FOUND"
    seeds = f"{catch.seeds} seed{'s' * (catch.seeds != 1)}"
    sys.stdout.write(f"{catch.name:<{NAME_COLUMNS}} {found}, {seeds}, {catch.seconds:.0f} s: {catch.broken}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
