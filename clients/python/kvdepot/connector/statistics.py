"""Counts the loads, stores and lookups of one engine."""

from __future__ import annotations

import re

from kvdepot.connector.block_transfers import BlockTransfer
from kvdepot.connector.commands import TransferOutcome
from kvdepot.connector.metric_definitions import FAILED, HIT, LATE, LOAD, MISS, STORE, UNUSED
from kvdepot.connector.request_state import RequestState
from kvdepot.connector.snapshots import Snapshot

MAX_REASONS = 48
"""The depot's errors have fewer reasons. A label may not grow without a bound."""
OTHER_REASON = "OTHER"
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


class ConnectorStatistics:
    """What has happened since the last `take`. Nothing here changes what the connector does."""

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._reasons: set[str] = set()

    def take(self) -> Snapshot:
        """Return the snapshot, and begin the next one."""
        snapshot, self._snapshot = self._snapshot, Snapshot()
        return snapshot

    def set_attached_workers(self, count: int) -> None:
        """Note how many workers are attached."""
        self._snapshot.set("attached_workers", count)

    def admitted(self, state: RequestState, num_external_tokens: int) -> None:
        """Count the lookup of a request that the engine admits, if it has one that is not counted."""
        lookup = state.lookup
        if lookup is None:
            return
        if num_external_tokens:
            result = HIT
        elif lookup.matched_tokens is None:
            result = LATE
        elif lookup.failed:
            result = FAILED
        else:
            result = UNUSED if lookup.matched_tokens > state.local_tokens else MISS
        self._snapshot.add("lookups", 1, result)
        self._snapshot.observe("lookup_wait_seconds", state.waited_seconds)

    def ended(self, transfer: BlockTransfer) -> None:
        """Count a load or store that is done at all workers."""
        outcome = transfer.outcome or TransferOutcome()
        direction = LOAD if transfer.is_load else STORE
        moved = transfer.num_loaded if transfer.is_load else outcome.stored_tokens
        self._snapshot.add("tokens", moved, direction)
        self._snapshot.add("bytes", outcome.num_bytes, direction)
        if outcome.seconds:
            self._snapshot.observe("transfer_seconds", outcome.seconds, direction)
        self._snapshot.add("resident_tokens", outcome.resident_tokens)
        if outcome.refused_tokens:
            self._snapshot.add("refused_tokens", outcome.refused_tokens, self._bounded(outcome.reason))
        elif transfer.failed or transfer.moved_end is not None:
            self._snapshot.add("failed_transfers", 1, direction, self._bounded(outcome.reason))
            self._snapshot.add("failed_tokens", transfer.num_tokens - transfer.num_loaded, direction)

    def _bounded(self, reason: str) -> str:
        if reason not in self._reasons:
            if len(self._reasons) >= MAX_REASONS or not _REASON.fullmatch(reason):
                return OTHER_REASON
            self._reasons.add(reason)
        return reason
