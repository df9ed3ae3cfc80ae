"""`python -m kvdepot.cli NAME`: the commands that speak to a depot."""

from __future__ import annotations

import typer

from kvdepot.cli.commands import DepotCommands

app = typer.Typer(cls=DepotCommands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Look at a depot that runs, and try whether it works."""


if __name__ == "__main__":
    app()
