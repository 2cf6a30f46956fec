"""`quorate reset`: remove everything that the platform keeps here."""

import sys
from typing import Annotated

import typer
from quorate_core.errors import Conflict

from quorate_cli.exits import EXIT_REFUSED, EXIT_USAGE
from quorate_cli.layout import Layout, RunLock, find_root, remove_everything
from quorate_cli.options import Root
from quorate_cli.run_state import read_run_state

app = typer.Typer(add_completion=False)


@app.command()
def reset(root: Root = None, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove all data, logs and secrets of the platform here; the next start begins anew.

    Refuses while the platform runs.
    """
    layout = Layout(find_root(root))
    if not layout.cluster_file.exists():
        typer.echo(f"There is nothing to remove in {layout.root}.")
        return
    if not yes:
        _ask(layout)
    layout.run_dir.mkdir(mode=0o700, exist_ok=True)
    lock = RunLock(layout)
    if not lock.try_acquire():
        raise Conflict(f"the platform in {layout.root} runs; stop it first: quorate down")
    try:
        state = read_run_state(layout)
        if state is not None and state.living_parts:
            raise Conflict(
                f"parts of the last run are still ending: {', '.join(state.living_parts)}; stop them: quorate down"
            )
        remove_everything(layout)
    finally:
        lock.release()
    typer.echo(f"Removed what was in {layout.root}.")


def _ask(layout: Layout) -> None:
    if not sys.stdin.isatty():
        typer.echo("quorate: reset removes all data; without a terminal to ask at, say --yes", err=True)
        raise typer.Exit(EXIT_USAGE)
    if not typer.confirm(f"Remove all data, logs and secrets in {layout.root}?"):
        typer.echo("Nothing was removed.")
        raise typer.Exit(EXIT_REFUSED)
