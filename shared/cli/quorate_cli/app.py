"""The command's tree. A command's module is imported when it is called, so that each starts quickly."""

import typer

from quorate_cli.exits import EXIT_CODES_HELP
from quorate_cli.lazy_commands import lazily

_COMMANDS = {
    "up": "quorate_cli.up",
    "down": "quorate_cli.down",
    "reset": "quorate_cli.reset",
    "ps": "quorate_cli.ps",
    "logs": "quorate_cli.logs",
    "services": "quorate_cli.services",
    "config": "quorate_cli.config",
    "routes": "quorate_cli.routes",
    "keys": "quorate_cli.api_keys",
    "cluster": "quorate_cli.cluster",
    "changes": "quorate_cli.changes",
    "init": "quorate_cli.init",
    "sim": "quorate_cli.sim",
    "setup": "quorate_cli.setup",
}


app = typer.Typer(
    cls=lazily(_COMMANDS), no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES_HELP,
)  # fmt: skip


@app.callback()
def quorate() -> None:
    """Run a Quorate platform, and look after it."""
