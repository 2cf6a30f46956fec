"""`python -m quorate_simulation`: see `command`."""

import sys

from quorate_simulation.command import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
