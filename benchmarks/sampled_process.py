"""Runs a module as `python -m` does, and samples where its processor time goes, between two SIGUSR1.

    python -P sampled_process.py SAMPLES_FILE MODULE ARGUMENT…

A timer of processor time (ITIMER_PROF) interrupts every INTERVAL_S of it, or at the kernel's next tick where that is
longer, on whatever thread; the handler runs on the main thread as soon as the interpreter gets there, and records the
main thread's stack. So time in a C function counts for the function that called it, and that of other threads for what
the main thread was doing meanwhile. The second SIGUSR1 writes the file, stacks innermost first:

    {"interval_s": 0.001, "samples": 2, "stacks": [[2, ["package/module.py:function", …]], …]}
"""

import json
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

INTERVAL_S = 0.001
DEPTH_MAX = 60
STACKS_MAX = 50_000

_LIBRARY_FOLDERS = {"site-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"}


class Sampler:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._stacks: Counter[tuple[CodeType, ...]] = Counter()
        self._is_on = False

    def install(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.signal(signal.SIGUSR1, self._toggle)

    def _toggle(self, _number: int, _frame: FrameType | None) -> None:
        self._is_on = not self._is_on
        interval_s = INTERVAL_S if self._is_on else 0.0
        signal.setitimer(signal.ITIMER_PROF, interval_s, interval_s)
        if not self._is_on:
            self._write()

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        stack: list[CodeType] = []
        while frame is not None and len(stack) < DEPTH_MAX:
            stack.append(frame.f_code)
            frame = frame.f_back
        key = tuple(stack)
        if key in self._stacks or len(self._stacks) < STACKS_MAX:
            self._stacks[key] += 1

    def _write(self) -> None:
        stacks = [[count, [describe(code) for code in stack]] for stack, count in self._stacks.most_common()]
        content = {"interval_s": INTERVAL_S, "samples": self._stacks.total(), "stacks": stacks}
        # Renamed when it is whole: whoever waits for the file never reads half of it.
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.rename(self._path)
        self._stacks.clear()


def describe(code: CodeType) -> str:
    """`package/module.py:Class.function`, from the package on, with nothing of where that is installed."""
    parts = Path(code.co_filename).parts
    start = next((n + 1 for n in reversed(range(len(parts))) if parts[n] in _LIBRARY_FOLDERS), None)
    if start is None:
        start = next((n for n, part in enumerate(parts) if part.startswith("quorate_")), max(len(parts) - 2, 0))
    return f"{'/'.join(parts[start:])}:{code.co_qualname}"


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    Sampler(Path(path)).install()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
