"""The command line: `python -m service serve|demo|doctor`, and the commands of `kvdepot.cli`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer
import uvloop

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before the import of grpc: our own errors say what it can't bind

from kvdepot.cli.commands import DepotCommands
from service.demo import demo
from service.doctor.command import doctor
from service.l1.arena import MemoryUnavailable
from service.misspelt import misspelt
from service.observability.output import Output
from service.server import CannotListen, Server, serve
from service.setting_options import load_given, with_setting_options
from service.settings import BadSettings

logger = logging.getLogger("service")  # __name__ is __main__ here

app = typer.Typer(
    cls=DepotCommands,
    help="kvdepot: a node-local depot for the KV cache of LLM inference engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def serve_command(**given: Any) -> None:
    """Start the depot. Every option is also a variable KVDEPOT_… and a key of the --config file."""
    output = Output.detached()
    try:
        settings = load_given(given)
        output.log_as(settings)
        for variable, meant in misspelt(os.environ):
            logger.warning("the variable %s is no setting and is ignored: is %s meant?", variable, meant)
        uvloop.run(serve(settings, ready=_say_ready, gauges=(output.read,)))
    except BadSettings as error:
        _fail(f"bad settings\n{error}", code=2)
    except (MemoryUnavailable, CannotListen) as error:
        _fail(str(error), code=1)


def doctor_command(
    *,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Also exit with 1 for a warning.")] = False,
    **given: Any,
) -> None:
    """Find what would make a depot with these settings fail on this machine, and how to fix it.

    Exits with 0 if nothing fails, with 1 if something does, with 2 for bad settings.
    """
    doctor(given, os.environ, as_json=json_output, strict=strict)


def _say_ready(server: Server) -> None:
    print(f"kvdepot serves on {', '.join(server.addresses)}", flush=True)  # noqa: T201 - for people and scripts


def _fail(message: str, code: int) -> None:
    print(f"kvdepot: {message}", file=sys.stderr)  # noqa: T201 - no log exists yet
    raise typer.Exit(code)


app.command("serve")(with_setting_options(serve_command))
app.command("demo")(demo)
app.command("doctor")(with_setting_options(doctor_command))

if __name__ == "__main__":
    app()
