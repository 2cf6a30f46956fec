"""A process with one planted bug in it: `python -m sim.mutant NAME FIRST_SEED SEEDS`, in the folder of the tests.

Prints a line of JSON: which seed found it, what that said was broken, and after how many seeds; or that none did.
"""

import json
import sys
import time

from sim.mutations import MUTATIONS, install


def main(name: str, first_seed: int, seeds: int) -> None:
    mutation = next(one for one in MUTATIONS if one.name == name)
    install(mutation)
    # NB: only now, for this imports the product.
    from quorate_simulation.profiles import PROFILES
    from quorate_simulation.report import diagnosis_of, name_of
    from quorate_simulation.world import run_seed

    began_s = time.monotonic()
    found: dict[str, object] = {"seed": None, "broken": "", "diagnosis": "", "seeds": seeds}
    for count, seed in enumerate(range(first_seed, first_seed + seeds), 1):
        broken = run_seed(seed, PROFILES[mutation.profile]).broken
        if broken is not None:
            found = {"seed": seed, "broken": name_of(broken), "diagnosis": diagnosis_of(broken), "seeds": count}
            break
    sys.stdout.write(json.dumps({"name": name, "seconds": time.monotonic() - began_s, **found}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
