"""The command's tree. A command's module is imported when it is called, so that each starts quickly."""

from importlib import import_module

import typer
from typer.core import TyperGroup

from quorate_cli.exits import EXIT_CODES_HELP

_COMMANDS = {
    "up": "quorate_cli.up",
    "down": "quorate_cli.down",
    "reset": "quorate_cli.reset",
    "ps": "quorate_cli.ps",
    "logs": "quorate_cli.logs",
    "services": "quorate_cli.services",
    "config": "quorate_cli.config",
    "routes": "quorate_cli.routes",
    "cluster": "quorate_cli.cluster",
    "init": "quorate_cli.init",
    "sim": "quorate_cli.sim",
    "setup": "quorate_cli.setup",
}


class LazyCommands(TyperGroup):
    """Knows its commands by name, and imports one when it is asked for."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer's own context type
        return list(_COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> "typer.core.TyperCommand | TyperGroup | None":  # type: ignore[override]  # as above
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = typer.main.get_command(import_module(module).app)
        command.name = cmd_name
        return command  # type: ignore[return-value]  # typer makes nothing else


app = typer.Typer(
    cls=LazyCommands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES_HELP,
)  # fmt: skip


@app.callback()
def quorate() -> None:
    """Run a Quorate platform, and look after it."""
