"""The L0 of one instance: records change its sessions' tables, and these change its blocks."""

from __future__ import annotations

import numpy as np

from telemetry.events import BlockAllocation
from telemetry.l0.batch import Batch, allocations
from telemetry.l0.block_lifecycle import ONE, BlockLifecycle
from telemetry.l0.blocks import Blocks
from telemetry.l0.fingerprints import PositionKeys, fingerprints
from telemetry.l0.observer import Observer, Source
from telemetry.l0.sessions import SessionTable

# Engines run hundreds of requests at a time. With more live sessions than this, the ends of some were lost.
MAX_SESSIONS = 16_384
# Longer than any context that engines serve. The keys of so many positions take 48 MiB.
MAX_SESSION_TOKENS = 1 << 22
MAX_SESSION_BLOCKS = 1 << 18
MAX_ENDS_AT_ONCE = 256


class InstanceBlocks:
    """The sessions and blocks of one instance, with one model and one block size.

    Times are in seconds of the events' monotonic clock. A time before the latest one counts as the latest.
    """

    def __init__(
        self,
        source: Source,
        block_size: int,
        *,
        sample_rate: float,
        session_idle_timeout_seconds: float,
        observer: Observer,
        keys: PositionKeys,
    ) -> None:
        self.source = source
        self.block_size = block_size
        self.num_malformed = 0
        self.blocks = Blocks(source.instance_id, sample_rate)
        self.lifecycle = BlockLifecycle(source, self.blocks, observer)
        self.last_time = float("-inf")
        self._session_idle_timeout_seconds = session_idle_timeout_seconds
        self._no_deadline_before = float("-inf")
        self._sessions: dict[str, SessionTable] = {}  # least recently used first
        self._keys = keys
        self._batch = Batch(self.blocks, self.lifecycle)

    def __repr__(self) -> str:
        return f"<InstanceBlocks {self.blocks.num_owned()}/{self.blocks.num_rows} owned, {self.num_sessions} sessions>"

    @property
    def num_sessions(self) -> int:
        """Live sessions."""
        return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of the sessions' tables."""
        return self.blocks.nbytes + sum(session.nbytes for session in self._sessions.values())

    def record(self, record: BlockAllocation, now: float) -> None:
        """Follow one record: update its session's table, and keep its allocations until `flush`.

        A record that can't be followed changes nothing and is counted as malformed. So are surplus tokens, and blocks
        that repeat too often in one record.
        """
        now = self.advance(now)
        known = self._sessions.get(record.session_id)
        num_added = num_blocks = len(record.reused_block_ids) + len(record.block_ids)
        if known is not None and not record.resumed:
            num_blocks += known.num_blocks
        if (
            num_blocks > MAX_SESSION_BLOCKS
            or num_blocks * self.block_size > MAX_SESSION_TOKENS
            or not self.blocks.make_room(record.reused_block_ids)
            or not self.blocks.make_room(record.block_ids)
        ):
            self.num_malformed += 1
            return
        if known is None:
            session = SessionTable()
            if len(self._sessions) >= MAX_SESSIONS:
                self.end_session(next(iter(self._sessions)), now)
        else:
            session = self._sessions.pop(record.session_id)
            if record.resumed:
                self._release(session, now)
                session.restart()
        self._sessions[record.session_id] = session
        session.last_time = now
        if not self._batch.has_room(session, num_added, now):
            self.flush()
        self._fill(session, record, now)

    def num_tokens_after(self, record: BlockAllocation) -> int:
        """Return how many tokens the record's session has with this record, at most."""
        known = self._sessions.get(record.session_id)
        return len(record.token_ids) + (known.num_tokens if known is not None else 0)

    def end_session(self, session_id: str, now: float) -> None:
        """Release the session's blocks. An unknown session is ignored."""
        now = self.advance(now)
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._release(session, now)

    def advance(self, now: float) -> float:
        """End the sessions that were idle for too long by `now`, as of their deadlines; return the latest time."""
        self.last_time = now = max(now, self.last_time)
        if now < self._no_deadline_before:
            return now
        for _ in range(min(MAX_ENDS_AT_ONCE, len(self._sessions))):
            session_id, session = next(iter(self._sessions.items()))
            deadline = session.last_time + self._session_idle_timeout_seconds
            if deadline > now:
                self._no_deadline_before = deadline
                return now
            del self._sessions[session_id]
            self._release(session, deadline)
        if self._sessions:
            return now
        self._no_deadline_before = now + self._session_idle_timeout_seconds
        return now

    def flush(self) -> None:
        """Apply the records that wait."""
        self.num_malformed += self._batch.apply()

    def _fill(self, session: SessionTable, record: BlockAllocation, now: float) -> None:
        """Make the table longer, and keep the record's allocations for the next `flush`."""
        appended, first_token = session.num_blocks, session.num_tokens
        if len(record.reused_block_ids) or len(record.block_ids):
            session.append(record.reused_block_ids, record.block_ids)
        token_ids = record.token_ids
        space = session.num_blocks * self.block_size - first_token
        if len(token_ids) > space:
            self.num_malformed += 1
            token_ids = token_ids[:space]
        session.num_tokens = first_token + len(token_ids)
        filled, filled_end = first_token // self.block_size, session.num_tokens // self.block_size
        identities = np.empty(filled_end - filled, dtype=np.uint64)
        session.fingerprint = fingerprints(
            self._keys, session.fingerprint, first_token, token_ids, self.block_size, identities
        )
        filled_before = range(filled, min(filled_end, appended))
        added = range(appended, session.num_blocks)
        if filled_before or added:
            num_prefix_hits = len(record.reused_block_ids)
            self._batch.add(allocations(session, filled_before, added, num_prefix_hits, identities), now)

    def _release(self, session: SessionTable, now: float) -> None:
        """Release a session's blocks, after the records that wait."""
        self.flush()
        blocks = self.blocks
        owned = session.owned(blocks.generation)
        num_owners = blocks.num_owners[owned] - ONE  # a block that the table has twice is written twice, alike
        blocks.num_owners[owned] = num_owners
        blocks.release_time[owned[num_owners == 0]] = now
