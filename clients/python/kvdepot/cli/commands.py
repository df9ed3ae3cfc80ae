"""Where each command is. A command is imported when it is called, so that it starts quickly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from kvdepot.cli.server_folder import server_folder
from kvdepot.cli.terminal import fail

if TYPE_CHECKING:
    from typer._click.core import Command, Context  # until 0.25 typer had click's own

_RUN, _ASK, _TRY = "Run a depot", "Ask a depot", "Try a depot"


@dataclass(frozen=True, slots=True)
class _Place:
    """The module of a command, and the panel of the help that lists it."""

    module: str
    panel: str

    @property
    def is_of_server(self) -> bool:
        """Whether the module is one of the server's, which an engine's environment may lack."""
        return not self.module.startswith("kvdepot.")


_PLACES = {
    "serve": _Place("service.commands", _RUN),
    "doctor": _Place("service.commands", _RUN),
    "l1": _Place("service.l1_commands", _RUN),
    "precompile": _Place("service.commands", _RUN),
    "status": _Place("kvdepot.cli.status", _ASK),
    "top": _Place("kvdepot.cli.top", _ASK),
    "sessions": _Place("kvdepot.cli.sessions", _ASK),
    "events": _Place("kvdepot.cli.events", _ASK),
    "sizing": _Place("kvdepot.cli.sizing", _ASK),
    "explain": _Place("kvdepot.cli.explain", _ASK),
    "pin": _Place("kvdepot.cli.pin", _ASK),
    "pins": _Place("kvdepot.cli.pins", _ASK),
    "unpin": _Place("kvdepot.cli.unpin", _ASK),
    "prefetch": _Place("kvdepot.cli.prefetch", _ASK),
    "clear": _Place("kvdepot.cli.clear", _ASK),
    "health": _Place("kvdepot.cli.health", _ASK),
    "log-level": _Place("kvdepot.cli.log_level", _ASK),
    "selftest": _Place("kvdepot.cli.selftest", _TRY),
    "check-engine": _Place("kvdepot.cli.check_engine", _TRY),
    "replay": _Place("kvdepot.cli.replay", _TRY),
    "demo": _Place("examples.demo.command", _TRY),
}


class ServerMissing(Exception):
    """The server is not installed here; the message says what is missing."""


class Commands(TyperGroup):
    """The group of all commands."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names of the commands that can be called."""
        return [name for name in _PLACES if _can_be_loaded(name)]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a command; None if there is none of this name. Without the server it ends a server's command."""
        if cmd_name not in _PLACES:
            return None
        try:
            command = _load(cmd_name)
        except ServerMissing as error:
            fail(f"`kvdepot {cmd_name}` runs the server, and {error}. Install it: pip install 'kvdepot[server]'")
        app, panel = typer.Typer(add_completion=False), _PLACES[cmd_name].panel
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=cmd_name, rich_help_panel=panel)
        else:
            app.command(cmd_name, rich_help_panel=panel)(command)
        return get_group(app).commands[cmd_name]


def _can_be_loaded(name: str) -> bool:
    try:
        _load(name)
    except ServerMissing:
        return False
    return True


def _load(name: str) -> Callable[..., Any]:
    """Import a command; a typer.Typer if it has commands of its own.

    Raises: ServerMissing.
    """
    place = _PLACES[name]
    if place.is_of_server:
        folder = server_folder()
        if folder is None:
            raise ServerMissing("this installation has no server")
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        module = import_module(place.module)
    except ModuleNotFoundError as error:
        if not place.is_of_server:
            raise
        raise ServerMissing(f"the package {error.name} is not installed") from error
    command: Callable[..., Any] = getattr(module, name.replace("-", "_"))
    return command
