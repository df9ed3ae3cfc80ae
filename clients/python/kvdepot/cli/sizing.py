"""The command `sizing`: what L1 would have hit with another size, as a plot, a table and advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from kvdepot import Credentials
from kvdepot.cli import sizing_view as view
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.plot_svg import svg, svg_file
from kvdepot.cli.plot_terminal import draw
from kvdepot.cli.tables import print_lines, print_rows
from kvdepot.cli.terminal import as_json, fail
from kvdepot.cli.times import seconds_of
from kvdepot.v1 import admin_pb2

MAX_PLOT_CELLS = 100
PLOT_ROWS = 14
ALL = "all"


@takes_credentials
def sizing(
    *,
    address: Address = DEFAULT_ADDRESS,
    window: Annotated[str, typer.Option(metavar="TIME", help="How far to look back: 1h, 7d; all.")] = "1h",
    model: Annotated[str, typer.Option(help="Only lookups of this model.")] = "",
    tenant: Annotated[str, typer.Option(help="Only lookups of this tenant.")] = "",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also write the plot to a file.")] = None,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Show what L1 would have hit if it were larger or smaller, and say what to do.

    The depot estimates it from a sample of its own traffic. Estimates have their error: the true value is within it in
    19 of 20 cases.
    """
    svg_file(plot)
    seconds = None if window == ALL else seconds_of(window, "--window")
    with connected(address, credentials) as client:
        answer = client.get_hit_curve(window_seconds=seconds, tenant=tenant, model_name=model)
    if plot is not None and not answer.total.is_too_early:
        try:
            plot.write_text(svg(view.plot(answer)), encoding="utf-8")
        except OSError as error:
            fail(f"{plot}: {error.strerror or error}")
    if json_output:
        print(json.dumps(as_json(answer), indent=2))
    else:
        _print(answer, model, tenant)
    if plot is not None and answer.total.is_too_early:
        fail(f"{plot} is not written: there is nothing to plot yet")


def _print(answer: admin_pb2.GetHitCurveResponse, model: str, tenant: str) -> None:
    print_lines([view.headline(answer, model, tenant)])
    if not answer.total.is_too_early:
        print()
        console = Console(highlight=False)
        is_ascii = not console.encoding.startswith("utf")
        console.print(draw(view.plot(answer), min(console.width, MAX_PLOT_CELLS), PLOT_ROWS, is_ascii=is_ascii))
        print()
        print_rows(view.columns(answer), view.rows(answer))
        if policies := view.policies(answer):
            print()
            print_rows(view.POLICIES, policies)
    if len(answer.curves) > 1:
        print()
        print_rows(view.CURVES, view.curves(answer))
    print()
    print_lines(Text(f"* {each.text}") for each in answer.advice)
