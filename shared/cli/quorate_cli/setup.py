"""`quorate setup`: give a control plane that runs elsewhere what `quorate up` gives its own at the first start."""

import asyncio
from typing import Annotated

import httpx
import typer
from quorate_core.errors import DeadlineExceeded

from quorate_cli import options
from quorate_cli.default_documents import publish_default_documents
from quorate_cli.endpoints import Target, find_target

SETUP_TIMEOUT_S = 60.0

app = typer.Typer(add_completion=False)


@app.command()
def setup(
    endpoints: options.Endpoints = None,
    token_file: options.TokenFile = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for a control plane that takes writes.", min=0)
    ] = SETUP_TIMEOUT_S,
) -> None:
    """Publish the default routes and settings, as far as there are none; what is there is never changed."""
    target = find_target(endpoints, token_file)
    try:
        published = asyncio.run(_publish(target, timeout_s))
    except TimeoutError:
        where = ", ".join(target.endpoints)
        raise DeadlineExceeded(
            f"no control plane took the default documents within {timeout_s:g} s at {where}",
            advice="It may be run again: documents that are there already are left alone.",
        ) from None
    typer.echo("Published " + ", ".join(published) if published else "Nothing to do: every document is there already")


async def _publish(target: Target, timeout_s: float) -> list[str]:
    headers = {"authorization": f"Bearer {target.token}"} if target.token else {}
    async with asyncio.timeout(timeout_s), httpx.AsyncClient(trust_env=False, headers=headers) as client:
        return await publish_default_documents(client, list(target.endpoints))
