"""`python -m kvdepot.cli NAME`: the commands that call a depot."""

from __future__ import annotations

import typer

from kvdepot.cli.commands import DepotCommands

app = typer.Typer(cls=DepotCommands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Show the state of a running depot, and test it."""


if __name__ == "__main__":
    app()
