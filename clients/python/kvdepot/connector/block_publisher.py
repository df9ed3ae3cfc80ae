"""Decides what an engine publishes about the blocks in its depot."""

from __future__ import annotations

from kvdepot.connector.attached_workers import AttachedWorkers
from kvdepot.connector.block_transfers import BlockTransfer
from kvdepot.connector.cache_groups import reported_group
from kvdepot.connector.chunk_prefixes import ChunkPrefixes
from kvdepot.connector.published_blocks import BlockChanges, PublishedBlocks
from kvdepot.connector.request_state import RequestState
from kvdepot.connector.scheduler_settings import SchedulerSettings


class BlockPublisher:
    """The publications of one engine. It publishes nothing if the engine does not want it, or has no full attention.

    Blocks without token ids are not published, because their readers could not use them.
    """

    def __init__(self, settings: SchedulerSettings, workers: AttachedWorkers, prefixes: ChunkPrefixes) -> None:
        self._workers = workers
        self._prefixes = prefixes
        self._blocks: PublishedBlocks | None = None
        group = reported_group(settings.groups)
        if settings.publishes_blocks and group is not None:
            self._blocks = PublishedBlocks(settings.groups[group].block_size, settings.hash_block_size)

    def begin_lookup(self, state: RequestState) -> None:
        """Note that a request's lookup begins."""
        if self._blocks is not None:
            state.lookup_mark = self._blocks.mark

    def admitted(self, state: RequestState) -> None:
        """Publish what the depot has of a request that the engine admits, and what it has no longer."""
        lookup = state.lookup
        if self._blocks is None or lookup is None or lookup.failed or not state.traits.has_token_ids:
            return
        if (matched := lookup.matched_tokens) is None:
            return
        request, chunk_size = state.request, self._workers.chunk_size
        self._blocks.stored(request, 0, matched, chunk_size)
        if lookup.is_absent:
            end = self._prefixes.whole_tokens(request, request.num_tokens)
            self._blocks.absent(request, matched, end, chunk_size, state.lookup_mark)

    def ended(self, transfer: BlockTransfer) -> None:
        """Publish what a transfer has stored. After a reset nothing is published of the requests before it."""
        state = transfer.state
        if self._blocks is None or transfer.is_load or transfer.failed:
            return
        if state.may_store and state.traits.has_token_ids:
            self._blocks.stored(state.request, transfer.start_token, transfer.end_token, self._workers.chunk_size)

    def clear(self) -> None:
        """Publish all as removed, after a reset or with another attachment."""
        if self._blocks is not None:
            self._blocks.clear()

    def take(self) -> BlockChanges:
        """Return what to publish since the last call."""
        return self._blocks.take() if self._blocks is not None else BlockChanges()
