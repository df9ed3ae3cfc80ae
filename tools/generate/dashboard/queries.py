"""PromQL, as the panels need it. In a selector ``{DEPOT`` and ``{MODEL`` stand for what is chosen above the panels."""

from __future__ import annotations

_DEPOT = '{job=~"$job", namespace=~"$namespace", instance=~"$instance"'
_MODEL = _DEPOT + ', model_name=~"$model"'


def rate(counter: str, *by: str) -> str:
    """How much a counter grows each second, over all depots and whatever is not in ``by``."""
    return f"sum{_by(*by)}(rate({counter}[$__rate_interval]))"


def increase(counter: str, *by: str) -> str:
    """How much a counter has grown since the point before."""
    return f"sum{_by(*by)}(increase({counter}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """One query by the other."""
    return f"{part} / {whole}"


def quantile(share_of_values: float, bucket: str, *by: str) -> str:
    """What so many of a histogram's values are below."""
    return f"histogram_quantile({share_of_values}, {rate(bucket, 'le', *by)})"


def total(gauge: str, *by: str) -> str:
    """The sum of a gauge."""
    return f"sum{_by(*by)}({gauge})"


def or_zero(query: str) -> str:
    """0 where nothing was counted yet."""
    return f"({query} or vector(0))"


def selected(query: str) -> str:
    """As Grafana takes it."""
    return query.replace("{DEPOT", _DEPOT).replace("{MODEL", _MODEL)


def _by(*labels: str) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
