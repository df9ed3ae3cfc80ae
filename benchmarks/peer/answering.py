"""The processes of the peer's environment answer lines of JSON on an output that nothing else writes to."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO


def own_output() -> TextIO:
    """Return the standard output of the process; redirect what libraries print there to standard error."""
    sys.stdout.flush()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def say(output: TextIO, answer: object) -> None:
    """Write the answer as one line."""
    print(json.dumps(answer), file=output, flush=True)


def serve(engine: object, commands: TextIO, output: TextIO) -> None:
    """Answer each line ``{"do": METHOD, …}`` until the input ends; with ``{"error": …}`` if the method raised."""
    for line in commands:
        command: dict[str, Any] = json.loads(line)
        try:
            answer = getattr(engine, command.pop("do"))(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(output, answer)
