"""`quorate logs`: what the parts print, one of them or all in the order of their times."""

import contextlib
import sys
import time
from typing import Annotated

import typer
from quorate_core.errors import NotFound

from quorate_cli import part_logs
from quorate_cli.layout import Layout, find_root
from quorate_cli.options import Root

POLL_INTERVAL_S = 0.2
LINES_MAX = 100_000

app = typer.Typer(add_completion=False)


@app.command()
def logs(
    part: Annotated[
        str | None, typer.Argument(help="Such as 'node-1', 'gateway', 'order-2'.", metavar="[PART]")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Begin with so many lines.", min=0, max=LINES_MAX)] = 100,
    root: Root = None,
) -> None:
    """Show what the parts have printed: all of them in the order of time, or one."""
    layout = Layout(find_root(root))
    known = sorted(path.stem for path in layout.logs_dir.glob("*.log"))
    if not known:
        raise NotFound(
            f"there are no logs in {layout.logs_dir}", advice="They are written by: make up (or: quorate up)"
        )
    if part is not None and part not in known:
        raise NotFound(f"there is no part {part!r} here", advice=f"There are: {', '.join(known)}")
    follower = part_logs.Follower(layout.logs_dir, part) if follow else None
    width = max(len(name) for name in known) if part is None else 0
    chosen = known if part is None else [part]
    last = {name: part_logs.last_lines(layout.log_file(name), lines) for name in chosen}
    for line in part_logs.interleave(last, lines):
        _print(line, width)
    if follower is not None:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(follower, width)


def _follow(follower: part_logs.Follower, width: int) -> None:
    while True:
        for line in follower.new_lines():
            _print(line, width)
        sys.stdout.flush()
        time.sleep(POLL_INTERVAL_S)


def _print(line: part_logs.LogLine, width: int) -> None:
    typer.echo(f"{line.part:<{width}} | {line.text}" if width else line.text)
