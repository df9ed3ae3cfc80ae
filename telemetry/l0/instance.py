"""The L0 of one instance: what records mean for its sessions' tables, and what those mean for its blocks."""

from __future__ import annotations

import numpy as np

from telemetry.events import BlockAllocation
from telemetry.l0.allocations import LONGEST_INDEXED_TABLE, carry_out, take_in_order
from telemetry.l0.block_lifecycle import Lives
from telemetry.l0.blocks import Blocks
from telemetry.l0.fingerprints import PositionKeys, fingerprints
from telemetry.l0.observer import Observer, Source
from telemetry.l0.pending import Pending, PendingRecord
from telemetry.l0.sessions import SessionTable

# Engines run hundreds of requests at a time; more live sessions than this are ends that were not heard of.
MAX_SESSIONS = 16_384
# Longer than any context that is served; the keys of so many positions take 48 MiB.
MAX_SESSION_TOKENS = 1 << 22
MAX_SESSION_BLOCKS = 1 << 18
ENDS_AT_ONCE = 256
SCANS_OF_A_TABLE = 500  # take as long as to index it
MOST_INDEXED = 64  # tables: 100 MB at most, given back in 10 ms
NOTHING = np.zeros(0, dtype=np.uint64)
ONE = np.uint32(1)


class InstanceBlocks:
    """Follows the records of one instance, with one model and one block size.

    Times come from the caller, in seconds of the events' clock; one that is before another counts as that one.
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
        pending: Pending,
    ) -> None:
        self.source = source
        self.block_size = block_size
        self.num_malformed = 0
        self.blocks = Blocks(source.instance_id, sample_rate)
        self.lives = Lives(source, self.blocks, observer)
        self.last_time = float("-inf")
        self._session_idle_timeout_seconds = session_idle_timeout_seconds
        self._no_deadline_before = float("-inf")
        self._sessions: dict[str, SessionTable] = {}  # the one that was quiet for longest comes first
        self._recorded: set[SessionTable] = set()  # since the last `settle`
        self._keys = keys
        self._pending = pending  # shared by all instances: empty whenever another one's turn comes

    def __repr__(self) -> str:
        return f"<InstanceBlocks {self.blocks.num_owned()}/{self.blocks.num_rows} owned, {self.num_sessions} sessions>"

    @property
    def num_sessions(self) -> int:
        """Sessions that live."""
        return len(self._sessions)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of the sessions' tables."""
        return self.blocks.nbytes + sum(session.nbytes for session in self._sessions.values())

    def record(self, record: BlockAllocation, now: float) -> None:
        """Follow one record; one that can't be followed changes nothing and is counted, as are surplus tokens.

        So is one that would have to be followed block by block, and is too long for that.
        """
        now = self.advance(now)
        known = self._sessions.get(record.session_id)
        num_blocks = len(record.reused_block_ids) + len(record.block_ids)
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
        if len(self._recorded) >= MOST_INDEXED:
            self.settle()
        self._recorded.add(session)
        session.last_time = now
        self._fill(session, record, now)

    def num_tokens_after(self, record: BlockAllocation) -> int:
        """How many tokens the record's session has with it, at most."""
        known = self._sessions.get(record.session_id)
        return len(record.token_ids) + (known.num_tokens if known is not None else 0)

    def end_session(self, session_id: str, now: float) -> None:
        """The session lets go of its blocks; one that is not known is ignored."""
        now = self.advance(now)
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._release(session, now)

    def advance(self, now: float) -> float:
        """End the sessions that have been quiet for too long by ``now``, as of then; returns the latest time so far."""
        self.last_time = now = max(now, self.last_time)
        if now < self._no_deadline_before:
            return now
        for _ in range(min(ENDS_AT_ONCE, len(self._sessions))):
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
        """Carry out what waits."""
        self.num_malformed += carry_out(self._pending, self.blocks, self.lives)

    def settle(self) -> None:
        """Carry out what waits, and give back what made many records of a session quick."""
        self.flush()
        for session in self._recorded:
            session.forget_owning()
        self._recorded.clear()

    def _fill(self, session: SessionTable, record: BlockAllocation, now: float) -> None:
        """Lengthen the table, and let wait what that and the tokens mean for its blocks."""
        appended, first_token = session.num_blocks, session.num_tokens
        if len(record.reused_block_ids) or len(record.block_ids):
            session.append(record.reused_block_ids, record.block_ids)
        token_ids = record.token_ids
        room = session.num_blocks * self.block_size - first_token
        if len(token_ids) > room:
            self.num_malformed += 1
            token_ids = token_ids[:room]
        filled = first_token // self.block_size
        session.num_tokens = first_token + len(token_ids)
        full_end = session.num_tokens // self.block_size
        filled_end = max(filled, min(full_end, appended))
        num_taken = filled_end - filled + session.num_blocks - appended
        if not num_taken:
            session.total = fingerprints(self._keys, session.total, first_token, token_ids, self.block_size, NOTHING)
            return
        if session.is_pending:
            self.flush()
        repeats = self._repeats(session, appended)
        num_claimed = len(record.reused_block_ids)
        session.has_duplicates |= repeats
        alone = session.has_duplicates or appended + num_claimed > max(appended, full_end)
        if alone or not self._pending.has_room(num_taken):
            self.flush()
            self._pending.make_room(num_taken)
        first = self._pending.num_blocks
        num_full = full_end - filled
        identities = self._pending.identities[first : first + num_full]
        session.total = fingerprints(self._keys, session.total, first_token, token_ids, self.block_size, identities)
        self._pending.add(
            PendingRecord(
                session=session,
                time=now,
                first=first,
                last=first + num_taken,
                filled=filled,
                filled_end=filled_end,
                appended=appended,
                appended_end=session.num_blocks,
                num_claimed=num_claimed,
                num_full=num_full,
            )
        )
        if alone:
            (taken,) = self._pending.take_all()
            self.num_malformed += not take_in_order(taken, self._pending, self.blocks, self.lives)
            self._pending.shrink()
        else:
            self.blocks.waits[self._pending.block_ids[first : first + num_taken]] = True

    def _repeats(self, session: SessionTable, appended: int) -> bool:
        """Whether a block that was appended to a table is in it already."""
        if not appended or appended == session.num_blocks:
            return False
        if session.has_duplicates:
            return True
        self._note_scan(session, appended)
        if session.owning is not None:
            new = session.block_ids[appended : session.num_blocks]
            return not session.owning.keys().isdisjoint(new.tolist())
        table, new = session.block_ids[:appended], session.block_ids[appended : session.num_blocks]
        if len(new) == 1:
            return bool((table == new[0]).any())
        mark = self.blocks.mark
        mark[table] = np.arange(appended, dtype=np.uint32)
        entries = mark[new]
        is_entry = entries < appended  # or else the mark is an old one
        return bool((table[entries[is_entry]] == new[is_entry]).any())

    def _note_scan(self, session: SessionTable, num_entries: int) -> None:
        """Once a table was looked through often enough to pay for it, find out by which entry it owns each block.

        A very long table is looked through each time: to index it would be too long a step.
        """
        session.num_scanned += num_entries
        if session.num_blocks > LONGEST_INDEXED_TABLE:
            session.forget_owning()
        elif session.num_scanned > SCANS_OF_A_TABLE * num_entries:
            session.owning_entries()

    def _release(self, session: SessionTable, now: float) -> None:
        """Let go of a session's blocks: before what waits, if it makes no difference to that, else after it.

        It makes one only for a block of which the session is the last owner: to all that waits a block with one owner
        less is an owned block all the same, and a block that is taken over has forgotten its owners either way.
        """
        if session.is_pending:
            self.flush()
        blocks = self.blocks
        owned = session.owned(blocks.generation)
        num_left = blocks.num_owners[owned] - ONE
        released = owned[num_left == 0]
        if self._pending.num_blocks and np.count_nonzero(blocks.waits[released]):
            self.flush()
            self._release(session, now)
            return
        blocks.num_owners[owned] = num_left
        blocks.release_time[released] = now
