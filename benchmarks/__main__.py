"""`python -m benchmarks`."""

import sys

from benchmarks.run import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
