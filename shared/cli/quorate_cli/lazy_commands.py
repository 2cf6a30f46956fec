"""Commands whose module is imported when they are called, or explained, so that every other one starts quickly."""

from collections.abc import Mapping
from importlib import import_module

import typer
from typer.core import TyperGroup


def lazily(modules: Mapping[str, str]) -> type[TyperGroup]:
    """A group that has, after the commands that are registered with it, one more for each name: the Typer application
    `app` of that module."""

    class LazyCommands(TyperGroup):
        def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer's own context type
            return [*super().list_commands(ctx), *modules]

        def get_command(self, ctx: typer.Context, cmd_name: str) -> "typer.core.TyperCommand | TyperGroup | None":  # type: ignore[override]  # as above
            module = modules.get(cmd_name)
            if module is None:
                return super().get_command(ctx, cmd_name)  # type: ignore[return-value]  # typer makes nothing else
            command = typer.main.get_command(import_module(module).app)
            command.name = cmd_name
            return command  # type: ignore[return-value]  # as above

    return LazyCommands
