"""The harness is a package at the root and no installed member, and `scripts` no package at all: both by their path."""

import sys

from support.repository import ROOT

for folder in (ROOT, ROOT / "scripts"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
