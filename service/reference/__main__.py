"""Writes the page: ``python -m service.reference FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from service.reference.settings import settings_page


def main(folder: Path) -> None:
    """Write it."""
    (folder / "settings.md").write_text(settings_page())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
