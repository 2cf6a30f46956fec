"""`quorate init`: make what a cluster's processes share and nobody else may know, for whoever starts them one by one.

`quorate up` does the same for itself. Here three plain files are made, as the processes' settings want them:

cluster.id      for `--cluster-id-file`: keeps the members of one cluster from those of another
cluster.secret  for `--cluster-secret-file`: proves members to each other
token           for `--token-file`: what clients send
"""

from pathlib import Path
from typing import Annotated

import typer
from quorate_core.secrets import load_or_create_secret

from quorate_cli.layout import Layout, new_cluster_id, write_atomically

CLUSTER_ID_NAME = "cluster.id"

app = typer.Typer(add_completion=False)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to keep them; only its owner may enter.", show_default=False)],
) -> None:
    """Generate a cluster's id, its secret and the token into FOLDER, as far as they are not there yet.

    What is there is never changed: with another id or secret, nodes would not know each other nor their data.
    """
    layout = Layout(folder.absolute())
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = (layout.root / CLUSTER_ID_NAME, layout.secret_file, layout.token_file)
    made = [path.name for path in wanted if not path.exists()]
    if not wanted[0].exists():
        write_atomically(wanted[0], new_cluster_id() + "\n")
        wanted[0].chmod(0o600)
    load_or_create_secret(layout.secret_file)
    load_or_create_secret(layout.token_file)
    typer.echo(f"Made in {layout.root}: {', '.join(made)}" if made else f"All is in {layout.root} already")
