"""Four kinds of panel: a number, lines, areas, a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.generate.dashboard.queries import increase, selected

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

_COLUMNS, _ROW_HEIGHT, _NUMBER_HEIGHT = 24, 8, 4

Queries = Mapping[str, str]
"""Queries by their text in the legend."""


def number(
    title: str, description: str, unit: str, query: str, warn: float | None = None, alarm: float | None = None
) -> stat.Panel:
    """Return one number with its history as a line, yellow from ``warn`` on and red from ``alarm`` on."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(DATASOURCE)
        .height(_NUMBER_HEIGHT)
        .span(_COLUMNS // 8)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(warn, alarm))
        .with_target(_target(query).ref_id("A"))
    )


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Queries,
    *,
    limit: float | None = None,
    may_be_negative: bool = False,
) -> timeseries.Panel:
    """Return lines over time, from 0 on unless they may be negative. Above ``limit`` an operator should act."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(DATASOURCE)
        .height(_ROW_HEIGHT)
        .span(_COLUMNS // 3)
        .line_width(1)
        .fill_opacity(8)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if not may_be_negative:
        panel.min(0)
    if limit is not None:
        panel.thresholds(_thresholds(None, limit))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    for ref_id, (legend, query) in zip(ascii_uppercase, queries.items(), strict=False):
        panel.with_target(_target(query).ref_id(ref_id).legend_format(legend))
    return panel


def areas(title: str, description: str, unit: str, queries: Queries) -> timeseries.Panel:
    """Return stacked lines."""
    stacking = common.StackingConfig().mode(StackingMode.NORMAL)
    return lines(title, description, unit, queries).stacking(stacking).fill_opacity(40)


def heat(title: str, description: str, unit: str, bucket: str) -> heatmap.Panel:
    """Return the distribution of a histogram's values over time."""
    query = _target(increase(bucket, "le")).format(PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .height(_ROW_HEIGHT)
        .span(_COLUMNS // 3)
        .calculate(False)
        .cell_gap(1)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Turbo").steps(64).exponent(0.5))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .with_target(query.ref_id("A").legend_format("{{le}}"))
    )


def _target(query: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(selected(query)).range().datasource(DATASOURCE)


def _thresholds(warn: float | None, alarm: float | None) -> dashboard.ThresholdsConfig:
    """Return thresholds: green, yellow from ``warn`` on, red from ``alarm`` on."""
    limits = [(at, color) for at, color in ((warn, "yellow"), (alarm, "red")) if at is not None]
    steps = [Threshold(value=at, color=color) for at, color in ((None, "green"), *limits)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
