"""`sizing` shows the curve as a plot and a table, says what to do, and never shows a number that is made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from kvdepot.cli.app import app
from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.curve import HitCurve
from service.server import Server
from tests.e2e.servers import running_server
from tests.fakes.curves import FACTORS, FakeCurves, curve

L1_BYTES = 1 << 30
FLAT = (0.28, 0.298, 0.3, 0.301, 0.301, 0.302)
Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server({"l1_size": "1GiB"}) as started:
        started.depots.index.num_evicted = 1
        yield started


@pytest.fixture
def run(server: Server) -> Run:
    """`await run("--json")` runs the command on the server, in a thread."""

    async def run(*arguments: str, columns: int = 100) -> Result:
        given = ["sizing", *arguments, "--address", server.addresses[0]]
        return await asyncio.to_thread(CliRunner().invoke, app, given, env={"COLUMNS": str(columns), "TERM": "xterm"})

    return run


def simulate(server: Server, *curves: HitCurve) -> FakeCurves:
    source = server.sizing.source = FakeCurves(*curves)
    return source


async def test_it_shows_the_curve_the_present_size_and_what_to_do(server: Server, run: Run) -> None:
    simulate(server, curve(l1_bytes=L1_BYTES, present={PolicyName.LRU2: 0.29, PolicyName.LFU: 0.2}))
    shown = await run()
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith(
        "L1 of 1 GiB, eviction learned, chosen by auto. In the last 1 h it hit 30.0 % of 100 M asked tokens.\n"
    )
    assert "● learned" in shown.output and "▲ lru" in shown.output
    assert "┊ now" in shown.output
    rows = [line.split() for line in shown.output.splitlines()]
    assert [
        "1",
        "GiB",
        "1x",
        "30.0",
        "%",
        "0.4",
        "%",
        "27.0",
        "%",
        "27.94",
        "GiB",
        "50",
        "s/min",
        "20",
        "%",
        "now",
    ] in rows
    assert ["2", "GiB", "2x", "40.0", "%", "0.4", "%", "36.0", "%", "37.25", "GiB", "66.7", "s/min", "10", "%"] in rows
    assert ["learned", "30.0", "%", "0.4", "%", "in", "use"] in rows
    assert ["lru2", "29.0", "%", "0.4", "%"] in rows
    assert shown.output.endswith(
        "* +1 GiB of L1 would have hit 10.0 % more of the tokens (±0.6 %): 40.0 % instead of 30.0 %. "
        "That saves 17 s of prefill a minute.\n"
    )


async def test_the_tier_is_a_row_and_a_symbol(server: Server, run: Run) -> None:
    simulate(server, curve(l1_bytes=L1_BYTES, tier=0.49))
    shown = (await run()).output
    assert "■ L1 with disk" in shown
    assert any(line.startswith("11 GiB") and line.endswith("L1 with disk") for line in shown.splitlines())
    assert "* disk holds most of what a larger L1 would hit" in shown


async def test_two_tenants_have_a_row_each_and_one_can_be_chosen(server: Server, run: Run) -> None:
    simulate(
        server,
        curve(FLAT, tenant="red", l1_bytes=L1_BYTES, share=0.7),
        curve(tenant="blue", model_name="qwen", l1_bytes=L1_BYTES, share=0.3),
    )
    rows = [line.split() for line in (await run()).output.splitlines()]
    assert ["red", "llama", "70", "M", "30.0", "%", "29.8", "%", "30.0", "%", "30.1", "%", "0.4", "%"] in rows
    assert ["blue", "qwen", "30", "M", "30.0", "%", "20.0", "%", "30.0", "%", "40.0", "%", "0.4", "%"] in rows
    of_red = (await run("--tenant", "red")).output
    assert "70 M asked tokens of tenant red" in of_red
    assert "qwen" not in of_red
    assert "* More memory gives little" in of_red and "* Half of the present L1 (512 MiB) would do" in of_red
    of_qwen = (await run("--model", "qwen")).output
    assert "30 M asked tokens of qwen" in of_qwen
    assert "* +1 GiB of L1 would have hit 10.0 % more" in of_qwen
    simulate(server, curve(l1_bytes=L1_BYTES, share=0.9), curve(model_name="", l1_bytes=L1_BYTES, share=0.1))
    assert any(line.startswith("–       all others") for line in (await run()).output.splitlines())
    assert "No lookup of nobody's in this time" in (await run("--model", "nobody's")).output


async def test_too_early_says_how_long_it_watched_and_plots_nothing(server: Server, run: Run, tmp_path: Path) -> None:
    simulate(server, curve(l1_bytes=L1_BYTES, share=0.01, window_seconds=120.0))
    shown = await run()
    assert shown.exit_code == 0
    assert "* It is too early: in 2 min the depot saw 39 sampled uses of chunks." in shown.output
    assert "●" not in shown.output and "would have hit" not in shown.output
    file = tmp_path / "curve.svg"
    refused = await run("--plot", str(file))
    assert refused.exit_code == 1
    assert "is not written: there is nothing to plot yet" in refused.output
    assert not file.exists()


async def test_json_is_the_whole_answer(server: Server, run: Run) -> None:
    simulate(server, curve(l1_bytes=L1_BYTES))
    printed = await run("--json")
    answer = json.loads(printed.stdout)
    assert answer["active_policy"] == "learned"
    learned = [point for point in answer["total"]["points"] if point["policy"] == "learned"]
    assert [point["l1_factor"] for point in learned] == list(FACTORS)
    assert learned[2]["hit_ratio"] == pytest.approx(0.3)
    assert [each["kind"] for each in answer["advice"]] == ["SIZING_ADVICE_KIND_MORE_MEMORY"]


async def test_json_too_early_says_so(server: Server, run: Run) -> None:
    simulate(server)
    answer = json.loads((await run("--json")).stdout)
    assert answer["total"]["is_too_early"] is True
    assert answer["total"]["points"] == []


async def test_the_plot_is_written_as_svg(server: Server, run: Run, tmp_path: Path) -> None:
    simulate(server, curve(l1_bytes=L1_BYTES, tier=0.49))
    file = tmp_path / "curve.svg"
    assert (await run("--plot", str(file))).exit_code == 0
    texts = "".join(ElementTree.parse(file).getroot().itertext())
    for text in ("learned", "lru", "L1 with disk", "now", "8 GiB"):
        assert text in texts


@pytest.mark.parametrize(
    ("name", "message"), [("curve.png", "the plot is SVG"), ("no-such-folder/curve.svg", "there is no folder")]
)
async def test_a_file_that_can_not_be_written_is_refused_at_once(
    server: Server, run: Run, tmp_path: Path, name: str, message: str
) -> None:
    source = simulate(server, curve(l1_bytes=L1_BYTES))
    refused = await run("--plot", str(tmp_path / name), columns=300)
    assert refused.exit_code == 2
    assert message in refused.output
    assert source.windows == []


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3_600.0), ("30m", 1_800.0), ("7d", 604_800.0), ("all", None)])
async def test_windows(server: Server, run: Run, text: str, seconds: float | None) -> None:
    source = simulate(server, curve(l1_bytes=L1_BYTES))
    await run("--window", text)
    assert source.windows == [seconds if seconds is not None else float("inf")]


@pytest.mark.parametrize(("text", "code"), [("soon", 2), ("-1h", 2), ("0s", 1), ("99d", 1)])
async def test_a_window_that_can_not_be_is_refused(server: Server, run: Run, text: str, code: int) -> None:
    refused = await run("--window", text)
    assert refused.exit_code == code
    assert "window" in refused.output


async def test_a_narrow_terminal_keeps_what_counts(server: Server, run: Run) -> None:
    simulate(server, curve(l1_bytes=L1_BYTES))
    shown = (await run(columns=60)).output
    plotted = [line for line in shown.splitlines() if "│" in line or "┤" in line]
    assert plotted
    assert max(map(len, plotted)) <= 60


async def test_names_from_the_wire_do_not_reach_the_terminal(server: Server, run: Run) -> None:
    hostile = curve(tenant="\x1b[31mred", model_name="\x1b]0;title\x07", l1_bytes=L1_BYTES)
    simulate(server, hostile, curve(l1_bytes=L1_BYTES))
    shown = (await run()).output
    assert r"\x1b[31mred" in shown
    assert "\x1b" not in shown and "\x07" not in shown
