"""`quorate sim`: run a simulated cluster from a seed, or many, and say what was broken."""

from pathlib import Path
from typing import Annotated

import typer
from quorate_simulation.command import ALL_PROFILES, WORKERS_DEFAULT, Options, run
from quorate_simulation.profiles import DEFAULT_PROFILE, PROFILES

app = typer.Typer(add_completion=False)

_PROFILES = ", ".join((*PROFILES, ALL_PROFILES))


def _known(profile: str) -> str:
    if profile not in PROFILES and profile != ALL_PROFILES:
        raise typer.BadParameter(f"there are {_PROFILES}")
    return profile


@app.command()
def sim(
    seed: Annotated[
        int | None, typer.Option(help="Which one, or the first of many; a random one if not given.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Run so many, one after the other.", min=1)] = None,
    hours: Annotated[float | None, typer.Option(help="Run as many as fit.", min=0.0)] = None,
    profile: Annotated[str, typer.Option(help=f"What goes wrong: {_PROFILES}.", callback=_known)] = DEFAULT_PROFILE,
    full: Annotated[bool, typer.Option("--full", help="Print everything that happened.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that run many seeds.", min=1)] = WORKERS_DEFAULT,
    summary: Annotated[Path | None, typer.Option(help="Write the sum of many seeds there, as JSON.")] = None,
) -> None:
    """Run a whole cluster in one thread, with faults that a seed decides, and judge it.

    The same seed gives the same run. One that breaks something prints what, how it came to that, and how to run it
    again.
    """
    options = Options(seed, seeds, hours, profile, full, workers, summary)
    raise typer.Exit(run(options, lambda text: typer.echo(text, nl=False)))
