"""`python -m quorate_gateway`: runs the gateway until SIGTERM."""

from quorate_core.process import run_process

from quorate_gateway.bootstrap import main

if __name__ == "__main__":
    run_process(main)
