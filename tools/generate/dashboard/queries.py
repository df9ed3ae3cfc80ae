"""PromQL for the panels. In a selector, ``{DEPOT`` and ``{MODEL`` stand for the choices above the panels."""

from __future__ import annotations

_DEPOT = '{job=~"$job", namespace=~"$namespace", instance=~"$instance"'
_MODEL = _DEPOT + ', model_name=~"$model"'


def rate(counter: str, *by: str) -> str:
    """Return a counter's growth per second, summed over all labels but ``by``."""
    return f"sum{_by(*by)}(rate({counter}[$__rate_interval]))"


def increase(counter: str, *by: str) -> str:
    """Return a counter's growth since the previous point."""
    return f"sum{_by(*by)}(increase({counter}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """Return one query divided by another."""
    return f"{part} / {whole}"


def quantile(share_of_values: float, bucket: str, *by: str) -> str:
    """Return the bound below which a share of a histogram's values lies."""
    return f"histogram_quantile({share_of_values}, {rate(bucket, 'le', *by)})"


def total(gauge: str, *by: str) -> str:
    """Return the sum of a gauge."""
    return f"sum{_by(*by)}({gauge})"


def or_zero(query: str) -> str:
    """Return 0 before the first count."""
    return f"({query} or vector(0))"


def selected(query: str) -> str:
    """Return the query with Grafana's variables for ``{DEPOT`` and ``{MODEL``."""
    return query.replace("{DEPOT", _DEPOT).replace("{MODEL", _MODEL)


def _by(*labels: str) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
