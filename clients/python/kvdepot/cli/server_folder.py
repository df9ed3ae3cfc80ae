"""The folder that has the server's packages: `service`, `kernels` and `telemetry`.

An installed wheel has it inside of `kvdepot`, where no import finds it. In the checkout it is the top level.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def server_folder() -> Path | None:
    """Return the folder; None if only the client's files are here."""
    folders = (PACKAGE / "_server", PACKAGE.parents[2])
    return next((folder for folder in folders if (folder / "service" / "commands.py").is_file()), None)
