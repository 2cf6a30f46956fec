"""`quorate ps`: the processes of the platform that runs here."""

import typer

from quorate_cli.exits import EXIT_NOT_FOUND
from quorate_cli.layout import Layout, find_root
from quorate_cli.options import AsJson, Root
from quorate_cli.run_state import RunState, read_run_state
from quorate_cli.tables import parts_table, show

app = typer.Typer(add_completion=False)


@app.command()
def ps(root: Root = None, as_json: AsJson = False) -> None:
    """Show the processes of the platform that runs here.

    Exits with 3 when none runs.
    """
    layout = Layout(find_root(root))
    state = read_run_state(layout)
    if state is None or not (state.is_alive or state.living_parts):
        typer.echo(f"No platform runs in {layout.root}.", err=True)
        raise typer.Exit(EXIT_NOT_FOUND)
    if as_json:
        typer.echo(state.model_dump_json())
        return
    typer.echo(_summary(state))
    show(parts_table(state))


def _summary(state: RunState) -> str:
    if not state.is_alive:
        return f"The supervisor (pid {state.pid}) has ended; its parts are ending too: {', '.join(state.living_parts)}"
    return f"The platform is {state.state}; supervisor pid {state.pid}, since {state.started_at}"
