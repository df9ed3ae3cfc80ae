"""The runs of a comparison beside one another: tables of policies by sizes, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Column, Table

from kvdepot.cli.plot import Axis, Plot, PlotPoint, Series
from kvdepot.cli.plot_terminal import draw
from kvdepot.cli.readable import number
from kvdepot.cli.replay_report import model_of
from kvdepot.cli.replay_summary import Summary
from kvdepot.cli.terminal import readable_size

BOUND, UNLIMITED = "offline bound", "unlimited cache"
_BOUNDS = {BOUND: "offline_bound_hit_ratio", UNLIMITED: "unlimited_hit_ratio"}
_MAX_PLOT_WIDTH = 110


def show_comparison(summaries: Sequence[Summary]) -> None:
    """Print the tables, and a plot if there are several sizes."""
    console = Console(highlight=False)
    sizes, _ = _axes(summaries)
    if len(sizes) > 1:
        is_ascii = not console.encoding.startswith("utf")
        console.print(draw(plot_of(summaries), min(console.width, _MAX_PLOT_WIDTH), is_ascii=is_ascii))
        console.print()
    console.print(_ratios(summaries))
    console.print(_table("hits in tokens, and in bytes of KV", summaries, _hits))
    console.print(_table("seconds of prefill saved", summaries, lambda run: f"{run['saved_prefill_seconds']:,.0f}"))
    console.print(_table("seconds of each run", summaries, lambda run: f"{run['duration_seconds']:.1f}"))
    first = summaries[0]
    for line in (
        f"Each run: {first['num_requests']:,} requests of {first['num_blocks']:,} blocks.",
        "* is the best policy of its size.",
        f"The {BOUND} is what a cache of this size would hit if it knew all requests to come. No policy reaches it. "
        f"The {UNLIMITED} keeps everything.",
        f"Tokens, bytes and seconds: {model_of(first)}.",
    ):
        console.print(line, markup=False)


def plot_of(summaries: Sequence[Summary]) -> Plot:
    """Return the plot of hit ratios over the sizes of L1."""
    sizes, policies = _axes(summaries)
    by_run = _by_run(summaries)
    series = [
        Series(
            name=policy,
            points=[PlotPoint(x=size, y=by_run[policy, size]["hit_ratio"]) for size in sizes],
        )
        for policy in policies
    ]
    series += [
        Series(
            name=name,
            points=[PlotPoint(x=size, y=by_run[policies[0], size][key]) for size in sizes],
            is_reference=True,
        )
        for name, key in _BOUNDS.items()
    ]
    nodes = summaries[0]["num_nodes"]
    chunk_bytes = by_run[policies[0], sizes[0]]["l1_kv_bytes"] / sizes[0]
    return Plot(
        title="Hit ratio by eviction policy and size of L1",
        x=Axis(
            label=f"L1{' of each depot' if nodes > 1 else ''}: chunks, and bytes of KV (logarithmic)",
            text="{:,.0f}".format,
            second_text=lambda size: readable_size(round(size * chunk_bytes)),
            is_log=True,
            ticks=sizes,
        ),
        y=Axis(label="hit ratio", text="{:.2f}".format),
        series=series,
    )


def _axes(summaries: Sequence[Summary]) -> tuple[list[int], list[str]]:
    """Return the sizes, which grow, and the policies in their order."""
    sizes = sorted({run["l1_chunks"] for run in summaries})
    return sizes, list(dict.fromkeys(run["eviction"] for run in summaries))


def _by_run(summaries: Sequence[Summary]) -> dict[tuple[str, int], Summary]:
    return {(run["eviction"], run["l1_chunks"]): run for run in summaries}


def _empty_table(title: str, summaries: Sequence[Summary]) -> Table:
    sizes, policies = _axes(summaries)
    by_run = _by_run(summaries)
    columns = (
        Column(f"{size:,}\n{readable_size(by_run[policies[0], size]['l1_kv_bytes'])}", justify="right")
        for size in sizes
    )
    return Table("chunks in L1\nbytes of KV", *columns, title=title)


def _table(title: str, summaries: Sequence[Summary], text: Callable[[Summary], str]) -> Table:
    table = _empty_table(title, summaries)
    sizes, policies = _axes(summaries)
    by_run = _by_run(summaries)
    for policy in policies:
        table.add_row(policy, *(text(by_run[policy, size]) for size in sizes))
    return table


def _ratios(summaries: Sequence[Summary]) -> Table:
    sizes, policies = _axes(summaries)
    by_run = _by_run(summaries)
    best = {size: max(by_run[policy, size]["hit_blocks"] for policy in policies) for size in sizes}

    def text(run: Summary) -> str:
        is_best = len(policies) > 1 and run["hit_blocks"] == best[run["l1_chunks"]]
        return f"{'* ' if is_best else ''}{run['hit_ratio']:.4f}"

    table = _table("hit ratio: leading blocks that came back", summaries, text)
    for name, key in _BOUNDS.items():
        table.add_row(name, *(f"{by_run[policies[0], size][key]:.4f}" for size in sizes), style="dim")
    return table


def _hits(run: Summary) -> str:
    return f"{number(run['hit_tokens'])} / {readable_size(run['hit_kv_bytes'])}"
