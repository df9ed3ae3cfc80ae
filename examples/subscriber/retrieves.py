"""Writes one CSV line per finished retrieve: when, which session, how many tokens and bytes, in how many seconds."""

import csv
from collections.abc import Sequence
from pathlib import Path

from telemetry.events import Event, RetrieveFinished


class RetrievesToCsv:
    """A subscriber has a name, for counts of its errors, and the two methods below."""

    name = "retrieves to CSV"

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a", newline="")  # noqa: SIM115 - open until close

    def handle(self, batch: Sequence[Event]) -> None:
        rows = [event for event in batch if isinstance(event, RetrieveFinished)]
        csv.writer(self._file).writerows(
            (e.time, e.instance_id, e.session_id, e.retrieved_tokens, e.retrieved_bytes, e.duration_seconds)
            for e in rows
        )
        self._file.flush()

    def close(self) -> None:
        self._file.close()
