"""`python -m kvdepot` is the command `kvdepot`."""

from __future__ import annotations

from kvdepot.cli.app import app

app(prog_name="kvdepot")
