"""Writes what is generated of the chart: ``python -m helm.reference helm/kvdepot``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from helm.reference.readme import readme
from helm.reference.settings_schema import values_schema

FILES: dict[str, Callable[[Path], str]] = {"values.schema.json": values_schema, "README.md": readme}


def main(chart: Path) -> None:
    """Write every file."""
    for name, content in FILES.items():
        (chart / name).write_text(content(chart))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
