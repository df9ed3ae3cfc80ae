"""The commands that call a depot. Each is imported when it is called, so that a command starts quickly."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup
from typer.main import get_group

if TYPE_CHECKING:
    from typer._click.core import Command, Context  # until 0.25 typer had click's own

NAMES = ("status", "sessions", "health", "replay", "selftest")


class DepotCommands(TyperGroup):
    """A group that has these commands behind its own."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names of all commands."""
        return [*super().list_commands(ctx), *NAMES]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a command; None if there is none of this name."""
        if cmd_name not in NAMES:
            return super().get_command(ctx, cmd_name)
        command = getattr(import_module(f"kvdepot.cli.{cmd_name}"), cmd_name)
        app = typer.Typer(add_completion=False)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=cmd_name)
        else:
            app.command(cmd_name)(command)
        return get_group(app).commands[cmd_name]
