"""``python -m benchmarks``: bytes moved and calls answered, each beside the limit of the machine in the same run."""

from __future__ import annotations

import platform

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import lookups, transfers
from service.commands.processes import child, server_process


async def run(depot: str, echo: str, table: Table) -> None:
    """Every benchmark, on one event loop."""
    await transfers.measure(depot, table)
    await lookups.measure(depot, echo, table)


def main() -> None:
    """Start the servers, measure, print the table."""
    table = Table("what", "kvdepot", "limit in the same run", "ratio", title=f"kvdepot on {platform.machine()}")
    with server_process("--l1-size", "3GiB") as depot:
        echo = f"{depot}.echo"
        with child("the echo server", "-m", "benchmarks.echo", echo) as process:
            next(process.lines())
            uvloop.run(run(depot, echo, table))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
