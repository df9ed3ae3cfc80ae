"""How the cluster looks in a terminal or a pipe: a line for each step, then a table of all answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from examples.cluster.play import Cluster, Step
from examples.cluster.story import Story, Visit
from kvdepot.cli.terminal import printable
from kvdepot.cli.tiers import name_of
from kvdepot.v1 import admin_pb2

_MAX_WIDTH = 100


class Screen:
    """Prints a cluster's story."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, cluster: Cluster) -> None:
        """Print what there is."""
        tiers = " and ".join(tier.name for tier in cluster.tiers)
        self._print(Text(f"Three nodes, each a depot with an L1 of its own. They share {tiers}.", style="bold"))
        if len(cluster.tiers) == 1:
            other = "Mooncake" if cluster.tiers[0].name == "Valkey" else "Valkey"
            self._print(Text(f"{other} is not installed here, and is left out.", style="yellow"))
        self._print(Text())

    def do(self, step: Step) -> None:
        """Do a step, and print how it went."""
        if self._console.is_terminal:
            with self._console.status(step.text):
                visit = step.do()
        else:
            visit = step.do()
        mark = "+" if self._console.options.ascii_only else "✓"
        self._print(Text(f"{mark} {step.text}"))
        if visit is not None:
            self._print(Text(f"    {_outcome(visit)}", style="yellow" if visit.is_lost else "green"))

    def end(self, story: Story, tiers: Sequence[Sequence[admin_pb2.TierStatus]]) -> None:
        """Print all answers, what the tiers gave, and what was not as it should be."""
        self._print(Text())
        self._console.print(_answers(story), width=min(self._console.width, _MAX_WIDTH))
        for line in _given(tiers):
            self._print(Text(line))
        faults = story.faults()
        for fault in faults:
            self._print(Text(fault, style="bold red"))
        if not faults:
            shared = sum(visit.l2_tokens > 0 for visit in story.visits)
            self._print(
                Text(
                    f"All {len(story.visits)} answers are the same tokens with and without depots. "
                    f"{shared} of them began with KV that came from another node.",
                    style="bold green",
                )
            )

    def _print(self, text: Text) -> None:
        self._console.print(text, width=min(self._console.width, _MAX_WIDTH))


def _outcome(visit: Visit) -> str:
    if visit.is_lost:
        return f"it notices, computes all {visit.prompt_tokens:,} tokens, and answers after {_seconds(visit.seconds)}"
    if not visit.l1_tokens + visit.l2_tokens:
        why = f" (miss: {printable(visit.miss_reason)})" if visit.miss_reason.startswith("TIER") else ""
        return f"{visit.prompt_tokens:,} tokens computed{why}: {_seconds(visit.seconds)}"
    sources = [
        f"{tokens:,} {what}"
        for tokens, what in (
            (visit.l1_tokens, "tokens from the node's L1"),
            (visit.l2_tokens, "from the shared tiers" if visit.l1_tokens else "tokens from the shared tiers"),
            (visit.computed_tokens, "computed"),
        )
        if tokens
    ]
    return f"{', '.join(sources)}: {_seconds(visit.seconds)} instead of {_seconds(visit.seconds_without)}"


def _answers(story: Story) -> Table:
    columns = ("prompt", "L1", "tiers", "computed", "first token", "without", "same")
    table = Table(
        "engine",
        "node",
        *(Column(name, justify="right") for name in columns),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for visit in story.visits:
        table.add_row(
            visit.engine.upper(),
            str(visit.node),
            f"{visit.prompt_tokens:,}",
            f"{visit.l1_tokens:,}",
            f"{visit.l2_tokens:,}",
            f"{visit.computed_tokens:,}",
            _seconds(visit.seconds),
            "" if visit.is_lost else _seconds(visit.seconds_without),
            "killed" if visit.is_lost else ("yes" if visit.is_identical else "NO"),
        )
    return table


def _given(tiers: Sequence[Sequence[admin_pb2.TierStatus]]) -> Iterator[str]:
    """Yield for each tier how many chunks it gave and got, as far as the depots that run now know."""
    by_name: dict[str, tuple[int, int]] = {}
    for tier in (tier for of_node in tiers for tier in of_node):
        read, written = by_name.get(name_of(tier), (0, 0))
        reads, writes = tier.traffic.num_reads_by_outcome, tier.traffic.num_writes_by_outcome
        by_name[name_of(tier)] = read + reads.get("arrived", 0), written + writes.get("ok", 0)
    for name, (read, written) in by_name.items():
        yield f"{printable(name)}: {written:,} chunks written and {read:,} read by the depots that run now"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
