"""Writes the pages: ``python -m telemetry.reference FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from telemetry.reference.events import events_page
from telemetry.reference.metrics import metrics_page

PAGES = {"events.md": events_page, "metrics.md": metrics_page}


def main(folder: Path) -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (folder / name).write_text(page())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
