"""Mixed load on a real gateway whose configuration changes each second: no wrong answer, and nothing is left behind.

`GATEWAY_LOAD_S` (default 15) is how long; half an hour is
`PYTHONPATH=tests python -m support.gateway_load --minutes 30`.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.gateway_load import STEADY, VISITOR, WORKERS, leaks, run_mixed_load
from support.gateway_stack import echo_processes, gateway_stack

LOAD_S = float(os.environ.get("GATEWAY_LOAD_S", "15"))


@pytest.mark.timeout(LOAD_S + 120)
async def test_mixed_load_with_a_swap_each_second(tmp_path: Path, show: Callable[[str], None]) -> None:
    with gateway_stack(tmp_path) as stack, echo_processes(*STEADY, VISITOR) as services:
        judgement = await run_mixed_load(stack, services, LOAD_S, seed=1)
        assert "Traceback" not in stack.log
        assert stack.stop() == 0
    show(f"\n{judgement}")
    assert judgement.wrong == []
    assert leaks(judgement) == []
    assert set(judgement.done) == set(WORKERS), "every kind of client was served"
    assert judgement.limited, "the rate limit was met"
    assert judgement.swaps >= LOAD_S / 2
