"""Two engines with continuous batching share prompts through a depot that is killed and started again.

python -m examples.engine
"""

from __future__ import annotations

import argparse
import sys

from examples.demo.play import ENGINE_VARIABLES
from kvdepot.cli.processes import ChildFailed, child, exit_on_terminate


def main() -> int:
    """Play the story in a process where NumPy has one thread. Return 1 if anything went wrong."""
    argparse.ArgumentParser(prog="python -m examples.engine", description=__doc__.splitlines()[0]).parse_args()
    try:
        with (
            exit_on_terminate(),
            child("the engines", "-m", "examples.engine.play", variables=ENGINE_VARIABLES) as engines,
        ):
            for line in engines.lines():
                print(line, flush=True)
    except ChildFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
