"""Write every generated file of the repository: ``python -m tools.generate``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.generate.chart_readme import readme
from tools.generate.chart_schema import values_schema
from tools.generate.dashboard.dashboard import dashboard_json
from tools.generate.events import events_page
from tools.generate.metrics import metrics_page
from tools.generate.settings import settings_page
from tools.generate.sync_client import NAMES, sync_module

_REPOSITORY = Path(__file__).parents[2]
_CHART = _REPOSITORY / "helm/kvdepot"
FILES: dict[str, Callable[[], str]] = {
    "docs/events.md": events_page,
    "docs/metrics.md": metrics_page,
    "docs/settings.md": settings_page,
    "helm/kvdepot/README.md": lambda: readme(_CHART),
    "helm/kvdepot/values.schema.json": lambda: values_schema(_CHART),
    "helm/kvdepot/dashboards/kvdepot.json": dashboard_json,
} | {f"clients/python/kvdepot/sync/{name}": partial(sync_module, name) for name in NAMES}


def main() -> None:
    """Write each file."""
    for path, content in FILES.items():
        (_REPOSITORY / path).write_text(content())


if __name__ == "__main__":
    main()
