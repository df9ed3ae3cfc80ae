"""Plots show each series without colors, fit the terminal, and keep their values in place."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from kvdepot.cli.plot import Axis, Mark, Plot, PlotPoint, Scale, Series
from kvdepot.cli.plot_svg import svg, svg_file
from kvdepot.cli.plot_terminal import MIN_WIDTH, draw

SIZES = (1_000.0, 5_000.0, 10_000.0, 50_000.0)
RATIOS = {"auto": (0.08, 0.17, 0.23, 0.35), "lru": (0.04, 0.11, 0.21, 0.35), "bound": (0.19, 0.34, 0.36, 0.36)}


def plot(**changes: object) -> Plot:
    series = [
        Series(
            name=name,
            points=[PlotPoint(x=x, y=y) for x, y in zip(SIZES, ratios, strict=True)],
            is_reference=name == "bound",
        )
        for name, ratios in RATIOS.items()
    ]
    x = Axis(label="chunks", is_log=True, ticks=SIZES, text="{:,.0f}".format, second_text=lambda x: f"{x / 64:.0f} MB")
    values: dict[str, object] = {
        "title": "Hits",
        "x": x,
        "y": Axis(label="hit ratio", text="{:.2f}".format),
        "series": series,
    }
    return Plot(**(values | changes))  # type: ignore[arg-type]


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_each_series_has_its_own_symbol_in_the_picture_and_the_legend() -> None:
    shown = draw(plot(), 80).plain
    legend = lines(shown)[-1]
    assert legend == "● auto   ▲ lru   ⠂⠂⠂ bound"
    assert shown.count("●") == 1 + len(SIZES)
    assert shown.count("▲") == 1 + len(SIZES), "the last ones of both are side by side"
    assert shown.count("■") == 0, "a bound is a line only"


def test_a_higher_value_is_in_a_higher_line_and_a_larger_one_further_right() -> None:
    rows = [line.partition("┤")[2] or line.partition("│")[2] for line in lines(draw(plot(), 80).plain)]
    places = [(line.index("●"), row) for row, line in enumerate(rows) if "●" in line]
    assert len(places) == len(SIZES)
    assert places == sorted(places, key=lambda place: (place[1], -place[0])), "up and to the right"


@given(st.integers(0, 200), st.integers(0, 40), st.booleans())
def test_no_line_is_longer_than_the_terminal(width: int, height: int, is_ascii: bool) -> None:
    shown = draw(plot(marks=[Mark(x=20_000, label="what L1 has now")]), width, height, is_ascii=is_ascii).plain
    assert max(map(cell_len, lines(shown))) <= max(width, MIN_WIDTH)
    assert "auto" in shown


def test_ticks_have_both_texts_and_the_last_one_is_always_there() -> None:
    for width in (MIN_WIDTH, 80, 200):
        chunks, sizes = lines(draw(plot(), width).plain)[-4:-2]
        assert chunks.split()[-1] == "50,000"
        assert sizes.split()[-2:] == ["781", "MB"]
    crowded = plot(x=Axis(label="chunks", is_log=True, ticks=(1_000, 45_000, 50_000), text="{:,.0f}".format))
    assert lines(draw(crowded, MIN_WIDTH).plain)[-3].split() == ["1,000", "50,000"]
    assert lines(draw(plot(), 80).plain)[-4].split() == ["1,000", "5,000", "10,000", "50,000"]


def test_a_terminal_without_such_characters_gets_ascii() -> None:
    shown = draw(plot(marks=[Mark(x=20_000, label="now")]), 80, is_ascii=True).plain
    assert shown.isascii()
    assert lines(shown)[-1] == "o auto   x lru   ... bound"


def test_no_color_leaves_the_plot_complete() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, no_color=True, width=80)
    console.print(draw(plot(), 80))
    assert "\x1b[3" not in output.getvalue(), "no colors"
    assert "● auto" in output.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")


def test_bounds_of_a_value_are_drawn() -> None:
    points = [PlotPoint(x=x, y=0.5, low=0.1, high=0.9) for x in (1.0, 2.0)]
    bounded = plot(series=[Series(name="auto", points=points)], x=Axis(label="x"))
    rows = [line[6:] for line in lines(draw(bounded, 60).plain)]
    assert sum("│" in row for row in rows) > 8
    assert 'class="error"' in svg(bounded)
    assert "0.1 to 0.9" in svg(bounded)


def test_one_point_is_a_plot() -> None:
    one = plot(series=[Series(name="auto", points=[PlotPoint(x=5_000, y=0.0)])])
    assert draw(one, 60).plain.count("●") == 2
    assert "auto" in svg(one)


@pytest.mark.parametrize(
    ("points", "complaint"),
    [
        ([], "a plot needs a point"),
        ([PlotPoint(x=1, y=math.nan)], "y is nan"),
        ([PlotPoint(x=math.inf, y=0)], "x is inf"),
        ([PlotPoint(x=0, y=0)], "x is 0 on a logarithmic axis"),
    ],
)
def test_what_can_not_be_drawn_is_an_error(points: list[PlotPoint], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plot(series=[Series(name="auto", points=points)])


@given(st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=9), st.booleans(), st.integers(1, 12))
def test_all_values_are_on_their_axis_and_ticks_are_few(values: list[float], is_log: bool, num_ticks: int) -> None:
    scale = Scale(Axis(label="", is_log=is_log), iter(values), num_ticks)
    places = [scale.place(value) for value in sorted(values)]
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in places)
    assert places == sorted(places)
    assert 1 <= len(scale.ticks) <= num_ticks + 3
    assert all(-1e-6 <= scale.place(tick) <= 1 + 1e-6 for tick in scale.ticks)


def test_svg_is_one_document_with_every_name_and_no_markup_of_names() -> None:
    name = '<script>alert("&")</script>'
    document = svg(plot(series=[Series(name=name, points=[PlotPoint(x=10, y=1)])], title=name))
    root = ElementTree.fromstring(document)
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {name, "hit ratio", "50,000", "781 MB"} <= texts
    assert "<script" not in document
    assert "http" not in document.replace("http://www.w3.org/2000/svg", "")


def test_two_bounds_have_different_lines_in_the_legend() -> None:
    points = [PlotPoint(x=x, y=1) for x in SIZES]
    two = plot(series=[Series(name=name, points=points, is_reference=True) for name in ("this bound", "that bound")])
    for is_ascii in (False, True):
        signs = [entry.split(" ")[0:1] for entry in lines(draw(two, 80, is_ascii=is_ascii).plain)[-1].split("   ")]
        assert signs[0] != signs[1]
    root = ElementTree.fromstring(svg(two))
    dashes = [line.get("stroke-dasharray") for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(set(dashes)) == 2


def test_svg_tells_series_apart_without_colors() -> None:
    root = ElementTree.fromstring(svg(plot()))
    dashes = [line.get("stroke-dasharray") for line in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(dashes) == len(set(dashes)) == len(RATIOS)


def test_only_svg_is_written_and_only_into_a_folder_that_is_there(tmp_path: Path) -> None:
    assert svg_file(None) is None
    assert svg_file(tmp_path / "plot.SVG") == tmp_path / "plot.SVG"
    with pytest.raises(typer.BadParameter, match=r"ends in \.svg"):
        svg_file(tmp_path / "plot.png")
    with pytest.raises(typer.BadParameter, match="there is no folder"):
        svg_file(tmp_path / "missing" / "plot.svg")
