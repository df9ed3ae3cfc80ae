"""The command `kvdepot`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from kvdepot.cli.commands import Commands
from kvdepot.version import __version__

# Before a command imports grpc, which reads it then: the command itself says why a call fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _print_version(given: bool) -> None:
    if given:
        print(f"kvdepot {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=f"kvdepot {__version__}",
)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """A node-local depot for the KV cache of LLM inference engines."""
