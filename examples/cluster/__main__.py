"""Three depots on one host share Valkey and Mooncake; engines move between them, and one node is killed.

python -m examples.cluster
"""

from __future__ import annotations

import argparse
import io
import sys
from contextlib import ExitStack

from rich.console import Console

from examples.cluster.play import Cluster, NoServers
from examples.cluster.screen import Screen
from examples.demo.choices import DemoSize
from kvdepot import DepotError
from kvdepot.cli.processes import ChildFailed, exit_on_terminate


def main() -> int:
    """Play the cluster. Return 1 if an answer differs, a node got nothing from the others, or a process failed."""
    parser = argparse.ArgumentParser(prog="python -m examples.cluster", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=DemoSize, default=DemoSize.FULL, choices=list(DemoSize), help="how long the documents are"
    )
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows `?`
    screen = Screen(Console(highlight=False))
    try:
        with exit_on_terminate(), ExitStack() as until_end:
            cluster = Cluster.opened(arguments.size, until_end)
            screen.begin(cluster)
            for step in cluster.steps():
                screen.do(step)
            screen.end(cluster.story, [node.tiers() for node in cluster.nodes])
    except NoServers as error:
        print(f"error: {error}. `make test-servers` fetches them", file=sys.stderr)
        return 1
    except (ChildFailed, DepotError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 1 if cluster.story.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
