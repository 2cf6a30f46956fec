"""Progress of long work, on a terminal: how far, how fast, and for how long yet. Nothing of it anywhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def shown_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Within the context, call what it gives with how many bytes are done, and of how many. It goes to stderr, and is
    wiped out at the end."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with progress:
        task = progress.add_task(what, total=None)

        def show(done_bytes: int, all_bytes: int) -> None:
            progress.update(task, completed=done_bytes, total=all_bytes)

        yield show
