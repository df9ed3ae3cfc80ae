"""``python -m benchmarks.peer``: kvdepot and LMCache's multiprocess server, round by round, in the same run."""

from __future__ import annotations

import json
import os
import sys

import uvloop

from benchmarks import servers
from benchmarks.figures import Figure, Goal, Report
from benchmarks.peer import rounds, shapes, tiers
from benchmarks.peer.depot import DepotEngine, WrongBytes
from benchmarks.peer.processes import PeerFailed, Process
from benchmarks.peer.setups import PRIVATE, STOCK, TUNED, Setup, Transport, driver, server
from kvdepot.cli.processes import exit_on_terminate

L1 = "2500MiB"
WATCHING_SECONDS = 180.0


async def measure() -> list[Figure]:
    """Measure every setup of the peer, each with one depot, and then the tiers of both."""
    moved: list[Figure] = []
    asked: list[Figure] = []
    with servers.depot("--l1-size", L1, "--transfer-threads", str(shapes.THREADS)) as depot:
        async with DepotEngine.attached(depot.tcp) as ours:
            for transport in Transport:
                for tuning, lengths in ((STOCK, [shapes.SHORT]), (TUNED, [shapes.SHORT, shapes.LONG])):
                    setup = Setup(transport=transport, tuning=tuning)
                    with server(setup) as serving, driver(setup, serving.url) as peer:
                        if transport is Transport.ZMQ:  # the transport of requests does not carry the bytes
                            moved += await rounds.move(ours, peer, setup)
                        asked += await rounds.ask(ours, peer, setup, lengths)
    return [*moved, *asked, *await tiers.measure()]


def watch() -> tuple[str, list[Figure]]:
    """Return the peer's version; buses and L0 subscribers of both sides, in one process of the peer's environment."""
    process = Process("the subscribers", "-m", "benchmarks.peer.watching", variables=PRIVATE, answers=True)
    try:
        said = json.loads(process.line(WATCHING_SECONDS))
    finally:
        process.end()
    return said["version"], [
        Figure(**each | {"goal": each["goal"] and Goal(**each["goal"])}) for each in said["figures"]
    ]


def main() -> None:
    """Measure, print, and put the results on file."""
    load = os.getloadavg()[0]
    try:
        with exit_on_terminate():
            figures = uvloop.run(measure())
            version, watched = watch()
    except (PeerFailed, WrongBytes) as error:
        sys.exit(str(error))
    title = f"Compared with LMCache {version} on the CPU (load of the machine at the start: {load:.1f})"
    report = Report(title=title, figures=[*figures, *watched])
    report.print()
    report.write("peer")


if __name__ == "__main__":
    main()
