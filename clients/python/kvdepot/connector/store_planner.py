"""Plans the stores of an engine's requests."""

from __future__ import annotations

import sys
from collections.abc import Callable

from kvdepot.connector.attached_workers import AttachedWorkers
from kvdepot.connector.block_tables import cut_tables, storable_tokens, with_certain_states
from kvdepot.connector.block_transfers import BlockTransfers
from kvdepot.connector.chunk_prefixes import ChunkPrefixes
from kvdepot.connector.commands import BlockIds, StoreCommand
from kvdepot.connector.request_state import RequestState
from kvdepot.connector.scheduler_settings import SchedulerSettings


class StorePlanner:
    """Decides which chunks of a request are stored in a step. It holds their blocks in `transfers`."""

    def __init__(
        self,
        settings: SchedulerSettings,
        workers: AttachedWorkers,
        prefixes: ChunkPrefixes,
        transfers: BlockTransfers,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._prefixes = prefixes
        self._transfers = transfers

    def plan(self, state: RequestState, computed: int, tables: Callable[[str], BlockIds | None]) -> StoreCommand | None:
        """Return the store of all chunks that are whole once `computed` tokens are computed. None: there is none.

        If stores hold too many blocks, a later step stores the rest. Computed tokens may include drafts that are
        rejected later; these have no hash yet.
        """
        request, chunk_size = state.request, self._workers.chunk_size
        has_drafts = computed > request.num_tokens + self._settings.steps_ahead
        if computed % chunk_size == 0 and not has_drafts:
            state.exact_tokens = computed
        last = min(computed, self._max_tokens(state)) // chunk_size * chunk_size
        start = state.stored_tokens // chunk_size * chunk_size
        if last <= start or not self._settings.stores or not state.may_store or state.finished:
            return None
        end = min(self._prefixes.whole_tokens(request, request.num_tokens), last)
        num_free = self._transfers.num_free(is_load=False)
        block_ids = tables(state.request_id) if end > start and num_free else None
        groups, null_block_id = self._settings.groups, self._transfers.null_block_id
        if block_ids is None or any(
            len(ids) * group.block_size < end for ids, group in zip(block_ids, groups, strict=True)
        ):
            return None
        if self._settings.has_states:
            block_ids = with_certain_states(groups, block_ids, end, state.exact_tokens, null_block_id)
        covered = cut_tables(groups, block_ids, start, end, null_block_id)
        start, end = storable_tokens(groups, covered, start, end, chunk_size, num_free)
        state.stored_tokens = end
        if end <= start:
            return None
        state.check_adapter()
        if not state.may_store:
            return None
        stored = cut_tables(groups, block_ids, start, end, null_block_id)
        state.known_to_depot = True
        return StoreCommand(
            transfer_id=self._transfers.begin(
                state, stored, is_load=False, leases=(), start_token=start, end_token=end
            ),
            request_id=state.request_id,
            session_id=state.session_id,
            chunk_hashes=self._prefixes.hashes(request, end),
            chunk_size=chunk_size,
            cache_salt=self._prefixes.salt(state),
            adapter=state.adapter_identity,
            start_token=start,
            will_continue=state.traits.will_continue,
            token_ids=self._prefixes.tokens(state, end),
            tables=stored,
            traceparent=state.traits.traceparent,
        )

    def _max_tokens(self, state: RequestState) -> int:
        """Return where the last chunk may end that is stored of a request."""
        limits = (state.traits.max_store_tokens, state.traits.named_tokens)
        end = min((limit for limit in limits if limit is not None), default=sys.maxsize)
        return min(end, state.request.num_prompt_tokens) if self._settings.store_prompts_only else end
