"""`python -m quorate_inventory`: one instance of the inventory service."""

from quorate_core.process import run_process

from quorate_inventory.bootstrap import main

run_process(main)
