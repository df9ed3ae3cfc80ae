"""The table of sessions."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from kvdepot.cli.session_view import SessionView


def table_of(sessions: Iterable[SessionView]) -> Table:
    """A row for each."""
    table = Table(title="sessions, the last that began first")
    for header in ("instance", "session", "model"):
        table.add_column(header, overflow="fold")
    table.add_column("received", no_wrap=True)
    table.add_column("lasts", justify="right", no_wrap=True)
    table.add_column("state")
    for session in sessions:
        table.add_row(
            Text(session.instance_id),
            Text(session.session_id),
            Text(session.model_name),
            f"{session.start:%Y-%m-%d %H:%M:%S}",
            f"{session.duration_seconds:,.3f} s",
            Text(session.state, style="green" if session.state == "live" else ""),
        )
    if not table.rows:
        table.add_row("none")
    return table
