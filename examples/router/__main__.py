"""Routes the requests of a trace to several depots by their KV events, and compares that with other policies.

python -m examples.router --depots 4 --l1-chunks 512
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.traces import TRACES, prompts_of
from examples.router.play import Played, play
from examples.router.policies import PolicyName
from examples.router.routes import LATEST_SECONDS
from kvdepot import DepotError
from kvdepot.cli.processes import ChildFailed, exit_on_terminate
from kvdepot.cli.replay_node import ReplayFailed
from kvdepot.cli.request_trace import BadTrace, Trace, read_trace

ALL = "all"
MAX_DEPOTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is played: a policy, and how late it gets the events."""

    title: str
    policy: PolicyName
    num_depots: int
    l1_chunks: int
    late_requests: int = 0


def main(arguments: Sequence[str]) -> int:
    """Play a trace with each policy that was asked for, and print a line for each."""
    options = _parser().parse_args(arguments)
    try:
        trace = _trace(options.trace, options.limit_requests)
        print(f"{len(trace.requests):,} requests, {options.depots} depots of {options.l1_chunks:,} chunks each\n")
        print(f"{'policy':35} hit ratio  expected  most / mean")
        with exit_on_terminate(), Progress(console=Console(stderr=True), transient=True) as progress:
            for run in _runs(options):
                played = _play(run, trace, progress)
                ratios = f"{played.hit_ratio:9.2%}  {played.expected_ratio:8.2%}"
                print(f"{run.title:35} {ratios}  {played.imbalance:11.2f}", flush=True)
                if played.num_unheard:
                    unheard = f"of {played.num_unheard} requests not all blocks were told in {LATEST_SECONDS:g} s"
                    print(f"{unheard}: the events were late, or the depot had no space", file=sys.stderr)
    except (BadTrace, ChildFailed, ReplayFailed, DepotError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _runs(options: argparse.Namespace) -> Iterator[Run]:
    for policy in PolicyName if options.policy == ALL else [PolicyName(options.policy)]:
        for late in options.late_requests if policy is PolicyName.PREFIX else [0]:
            title = f"{policy}, events {late} requests late" if late else policy
            yield Run(
                title=title,
                policy=policy,
                num_depots=options.depots,
                l1_chunks=options.l1_chunks,
                late_requests=late,
            )
    yield Run(
        title="one depot with all the memory",
        policy=PolicyName.ROUND_ROBIN,
        num_depots=1,
        l1_chunks=options.depots * options.l1_chunks,
    )


def _play(run: Run, trace: Trace, progress: Progress) -> Played:
    task = progress.add_task(run.title, total=len(trace.requests))
    return play(
        trace,
        run.policy,
        num_depots=run.num_depots,
        l1_chunks=run.l1_chunks,
        late_requests=run.late_requests,
        on_request=lambda: progress.advance(task),
    )


def _trace(name: str, limit_requests: int | None) -> Trace:
    """Return an invented trace by its name, or one from a file.

    Raises: BadTrace, OSError.
    """
    if name not in TRACES:
        return read_trace(Path(name), limit_requests)
    prompts = prompts_of(name, limit_requests)
    return Trace(prompts, [()] * len(prompts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.router", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trace",
        default="agents",
        metavar="FILE",
        help=f"in Mooncake's format, or an invented one: {', '.join(TRACES)} (agents)",
    )
    parser.add_argument("--depots", type=_integer(1, MAX_DEPOTS), default=4, metavar="N", help="how many (4)")
    parser.add_argument(
        "--l1-chunks", type=_integer(1), default=512, metavar="N", help="how many chunks each depot holds (512)"
    )
    parser.add_argument("--policy", choices=[*PolicyName, ALL], default=ALL, help="how the router chooses (all)")
    parser.add_argument(
        "--late-requests",
        type=_integer(0),
        nargs="+",
        default=[0],
        metavar="N",
        help="after how many requests the router gets the events, with the policy prefix; several are several runs (0)",
    )
    parser.add_argument("--limit-requests", type=_integer(1), metavar="N", help="play only the first requests")
    return parser


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    def integer(text: str) -> int:  # argparse names it in its message
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{value} is not {f'from {least} to {most}' if most else f'{least} or more'}"
            )
        return value

    return integer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
