"""`python -m quorate_order`: one instance of the order service."""

from quorate_core.process import run_process

from quorate_order.bootstrap import main

run_process(main)
