"""Options and arguments that several commands share, each defined once."""

from pathlib import Path
from typing import Annotated

import typer

Endpoints = Annotated[
    str | None,
    typer.Option(
        "--endpoints", help="The control plane: http://host:port, several with commas between.",
        show_default="QUORATE_ENDPOINTS, else the platform that runs here",
    ),
]  # fmt: skip
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the token.", show_default="QUORATE_TOKEN_FILE, or its own"),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for scripts.")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-N", help="The namespace to look in.")]
Namespace = Annotated[str, typer.Argument(help="Such as 'default'.", metavar="NAMESPACE", show_default=False)]
Group = Annotated[
    str, typer.Argument(help="Such as 'gateway', or a service's name.", metavar="GROUP", show_default=False)
]
Key = Annotated[str, typer.Argument(help="Such as 'routes.yaml'.", metavar="KEY", show_default=False)]
Comment = Annotated[str, typer.Option("--comment", "-m", help="Why; kept with the version.")]
Author = Annotated[str | None, typer.Option("--author", help="Who; kept with the version.", show_default="you")]
IfVersion = Annotated[
    int | None, typer.Option("--if-version", help="Only if this is the version now; 0: if there is none.", min=0)
]
Root = Annotated[Path | None, typer.Option("--root", help="The platform's folder.", show_default=".quorate")]
