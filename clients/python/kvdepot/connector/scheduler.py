"""The connector in the engine's scheduler: decides what is loaded and stored. Nothing here waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from kvdepot.connector.attached_workers import AttachedWorkers
from kvdepot.connector.block_allocations import BlockReporter, report_allocation
from kvdepot.connector.block_publisher import BlockPublisher
from kvdepot.connector.block_tables import cut_tables, num_blocks_written
from kvdepot.connector.block_transfers import BlockReferences, BlockTransfers
from kvdepot.connector.cache_groups import reported_group
from kvdepot.connector.chunk_prefixes import ChunkPrefixes
from kvdepot.connector.commands import BlockIds, LoadCommand, StepCommands, WorkerReport
from kvdepot.connector.ended_loads import EndedLoad, ended_loads
from kvdepot.connector.pending_lookups import LookupClient, PendingLookups
from kvdepot.connector.prefill_rate import PrefillRate
from kvdepot.connector.published_blocks import BlockChanges
from kvdepot.connector.request_state import EngineRequest, RequestState, RequestTraits
from kvdepot.connector.scheduler_settings import SchedulerSettings
from kvdepot.connector.snapshots import Snapshot
from kvdepot.connector.statistics import ConnectorStatistics
from kvdepot.connector.store_planner import StorePlanner
from kvdepot.connector.weight_generation import WeightGeneration


class ConnectorScheduler:
    """The requests of one engine, and their transfers that are not done.

    `traits_of` is called once for each request, when it is new. `clock` is the clock of the lookup client, in seconds.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        lookup_client: LookupClient,
        reporter: BlockReporter | None,
        traits_of: Callable[[EngineRequest], RequestTraits],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._settings = settings
        self._lookup_client = lookup_client
        self._reporter = reporter
        self._traits_of = traits_of
        self._transfers = BlockTransfers(
            settings.num_blocks, settings.num_workers, settings.longest_transfer_seconds, clock
        )
        self._requests: dict[str, RequestState] = {}
        self._lookups = PendingLookups(
            lookup_client, settings.lookup_timeout_seconds, settings.lease_hold_seconds, clock
        )
        self._prefill_rate = PrefillRate(settings.prefill_tokens_per_second, settings.steps_ahead, clock)
        self._commands = StepCommands()
        self._workers = AttachedWorkers(settings.num_workers, settings.hash_block_size, clock)
        self._generation = WeightGeneration(settings.training_run)
        self._prefixes = ChunkPrefixes(self._workers, settings, self._generation)
        self._planner = StorePlanner(settings, self._workers, self._prefixes, self._transfers)
        self._reported_group = reported_group(settings.groups)
        self._statistics = ConnectorStatistics()
        self._publisher = BlockPublisher(settings, self._workers, self._prefixes)

    def __repr__(self) -> str:
        return f"<ConnectorScheduler {len(self._requests)} requests, {len(self._transfers)} transfers>"

    def bind(self, references: BlockReferences) -> None:
        """Use this block pool from the engine's start on."""
        self._transfers.bind(references)

    def arrived(self, request: EngineRequest) -> None:
        """Take a new request."""
        self._state(request)

    def matched_tokens(self, request: EngineRequest, num_computed_tokens: int) -> int | None:
        """Return how many tokens beyond the computed ones can be loaded. None: ask again in the next step.

        A request waits for the workers' first reports, and then for answers. After its longest wait it is computed: see
        `PendingLookups`.
        """
        state = self._state(request)
        state.local_tokens = num_computed_tokens
        state.exact_tokens = 0  # it gets other blocks
        if self._workers.await_first_reports():
            return None
        if state.lookup is None or state.lookup.matched_tokens is not None:
            state.check_adapter()
        if self._generation.cache_is_stale and num_computed_tokens:
            state.may_store = False  # it builds on KV of other weights
        wanted = self._wanted_tokens(state)
        if wanted <= num_computed_tokens:
            self._lookups.give_up(state)
            state.stored_tokens = self._transfers.stored_end(state, 0)
            return 0
        lookup = self._lookups.current(state)
        answer = lookup.matched_tokens if lookup is not None else None  # read once: it may come at any moment
        state.stored_tokens = self._transfers.stored_end(state, answer or 0)
        if lookup is None and not self._lookup_client.paused:
            self._publisher.begin_lookup(state)
            self._lookups.begin(state, self._prefixes.to_look_up(state, wanted), self._prefill_rate.tokens_per_second)
        if lookup is None or answer is None:
            return None if self._lookups.may_wait(state) else 0
        matched = min(answer, wanted)
        if matched < answer and self._settings.has_states:
            matched = 0  # nothing says that this end has a state
        num_blocks = num_blocks_written(self._settings.groups, num_computed_tokens, matched)
        if not lookup.leases or matched <= num_computed_tokens or not self._transfers.can_ever_load(num_blocks):
            return 0
        if num_blocks > self._transfers.num_free(is_load=True):  # running loads end soon, or never
            return None if self._lookups.may_wait(state) else 0
        return matched - num_computed_tokens

    def allocated(self, request: EngineRequest, block_ids: BlockIds, num_external_tokens: int) -> None:
        """Take the blocks that a request got, and load `num_external_tokens` into them in the next step."""
        state = self._state(request)
        self._statistics.admitted(state, num_external_tokens)
        self._publisher.admitted(state)
        state.waited_seconds = 0.0
        self._generation.cache_used()
        if num_external_tokens == 0:
            self._lookups.give_up(state)  # there is none if a load has just ended
            return
        lookup = self._lookups.take(state)
        end = state.local_tokens + num_external_tokens
        leases = lookup.leases if lookup is not None else ()
        matched = (lookup.matched_tokens or 0) if lookup is not None else 0
        state.l2_tokens = min(lookup.l2_tokens if lookup is not None else 0, num_external_tokens)
        is_found = end == matched if self._settings.has_states else end <= matched
        if not self._workers.chunk_size or end % self._workers.chunk_size or not is_found:
            self._lookup_client.release(leases)  # not what was found: the load fails, and the engine computes
            leases = ()
        groups, null_block_id, local = self._settings.groups, self._transfers.null_block_id, state.local_tokens
        written = cut_tables(groups, block_ids, local, end, null_block_id)
        state.may_load = False  # if the load fails, the tokens are computed
        transfer_id = self._transfers.begin(
            state, written, is_load=True, leases=leases, start_token=0, end_token=end, skip_tokens=local
        )
        self._commands.loads.append(
            LoadCommand(
                transfer_id=transfer_id,
                request_id=state.request_id,
                session_id=state.session_id,
                leases=leases,
                tables=cut_tables(groups, block_ids, 0, end, null_block_id),
                num_tokens=end,
                skip_tokens=local,
                may_be_partial=self._settings.may_load_partially,
                traceparent=state.traits.traceparent,
            )
        )

    def step(
        self,
        num_scheduled_tokens: Mapping[str, int],
        tables: Callable[[str], BlockIds | None],
        new_blocks: Sequence[tuple[str, BlockIds, bool]] = (),
        *,
        may_store: bool = True,
    ) -> StepCommands:
        """Return the commands to the workers for this step.

        `tables` returns the whole block table of a request. `new_blocks` has the request id, the blocks that it got
        in this step, and whether it starts anew; then these are all of its blocks. `may_store` is False in a step in
        which another connector loads while the engine computes: if that load fails, KV of requests that start anew is
        wrong, so they are not stored.
        """
        self._lookups.end_step()
        self._prefill_rate.step(num_scheduled_tokens)
        if num_scheduled_tokens:
            self._generation.cache_used()
        if not may_store:
            for request_id, _, starts_anew in new_blocks:
                if starts_anew and (state := self._requests.get(request_id)):
                    state.may_store = False
        if chunk_size := self._workers.chunk_size:
            for request_id, num_tokens in num_scheduled_tokens.items():
                state = self._requests.get(request_id)
                if state is None:
                    continue
                computed = state.request.num_computed_tokens + num_tokens
                if computed < state.stored_tokens + chunk_size:  # in most steps of decode; it is the whole cost
                    continue
                if (command := self._planner.plan(state, computed, tables)) is not None:
                    self._commands.stores.append(command)
            if self._reporter is not None and self._reported_group is not None:
                block_size = self._settings.groups[self._reported_group].block_size
                for request_id, block_ids, starts_anew in new_blocks:
                    if state := self._requests.get(request_id):
                        num_tokens = num_scheduled_tokens.get(request_id, 0)
                        ids = block_ids[self._reported_group]
                        report_allocation(self._reporter, state, ids, block_size, num_tokens, starts_anew)
        commands, self._commands = self._commands, StepCommands()
        return commands

    def reported(self, report: WorkerReport) -> list[EndedLoad]:
        """Take the workers' report. Return the loads that have ended since the one before."""
        failed = self._transfers.fail(report.failed)
        self._transfers.cut(report.partial)
        self._transfers.record(report.outcomes)
        for transfer in (done := self._transfers.mark_done(report.done)):
            self._statistics.ended(transfer)
            self._publisher.ended(transfer)
            self._lookup_client.release(transfer.leases)
            if transfer.is_load and not transfer.failed and transfer.state.may_store:
                transfer.state.may_load = True  # it may load again after a preemption
            self._end_session(transfer.state)
        if report.wants_token_ids is not None:
            self._workers.wants_token_ids = report.wants_token_ids
        if report.chunk_sizes:
            self._workers.update(report.chunk_sizes)
            self._statistics.set_attached_workers(self._workers.num_attached)
            self._publisher.clear()
            for state in self._requests.values():  # the new attachment may be to another depot, and that one empty
                state.stored_tokens = 0
        return ended_loads(failed, done)

    def finished(self, request: EngineRequest) -> None:
        """End a finished or aborted request. The engine frees its blocks; transfers keep their own references."""
        state = self._requests.get(request.request_id)
        if state is None:
            return
        self._lookups.give_up(state)
        state.finished = True
        self._end_session(state)
        if all(each.finished for each in self._requests.values()):
            self._prefill_rate.idle()

    def reset(self) -> None:
        """Take a reset of the engine's cache that includes the connector: the weights may be other ones."""
        if self._settings.reset_means_new_weights:
            self.weights_changed("", "the engine's cache is reset, so its weights may be other ones")

    def weights_changed(self, version: str, reason: str) -> None:
        """Take new weights: see `WeightGeneration.change`. What was found or computed with older ones is not used."""
        self._generation.change(version, reason)
        self._publisher.clear()
        for state in self._requests.values():
            self._lookups.give_up(state)
            state.end_generation()

    def engine_cache_emptied(self) -> None:
        """Trust the engine's own cache again: the engine has emptied it."""
        self._generation.cache_emptied()

    def needs_steps(self) -> bool:
        """Return whether the engine should make another step, because workers report in steps only."""
        return self._transfers.need_steps() or self._workers.await_first_reports()

    def num_l2_tokens(self, request: EngineRequest) -> int:
        """Return how many tokens of a request's last load come from tiers behind the depot's memory."""
        state = self._requests.get(request.request_id)
        return state.l2_tokens if state is not None else 0

    def take_statistics(self) -> Snapshot:
        """Return what has happened since the last call."""
        return self._statistics.take()

    def take_block_changes(self) -> BlockChanges:
        """Return the blocks to publish as stored or removed since the last call."""
        return self._publisher.take()

    def _state(self, request: EngineRequest) -> RequestState:
        state = self._requests.get(request.request_id)
        if state is None or state.finished:  # an id may come again while transfers of its last request run
            traits = self._traits_of(request)
            session_id = self._lookup_client.open_session(request.request_id)
            state = RequestState(request, session_id, traits, may_load=traits.may_load)
            self._requests[request.request_id] = state
        return state

    def _wanted_tokens(self, state: RequestState) -> int:
        """Return how many tokens may come from the depot, the engine's own ones included.

        The engine computes the last token of a fully cached prompt again. A window may then lack a block, so that the
        last chunk is left out.
        """
        if not self._settings.loads or not state.may_load:
            return 0
        num_tokens = state.request.num_tokens
        is_full = all(group.is_full for group in self._settings.groups)
        most = num_tokens if is_full else num_tokens - 1
        if (limit := state.traits.max_load_tokens) is not None:
            most = min(most, state.local_tokens + limit)
        if (named := state.traits.named_tokens) is not None:
            most = min(most, named)
        return self._prefixes.whole_tokens(state.request, most)

    def _end_session(self, state: RequestState) -> None:
        """End the session of a finished request after its transfers are done, because the end would stop them."""
        if not state.finished or state.transfer_ids:
            return
        if self._requests.get(state.request_id) is state:
            del self._requests[state.request_id]
        if not state.known_to_depot:
            self._lookup_client.forget_session(state.session_id)
        elif self._reporter is not None:
            self._reporter.end_session(state.session_id)  # after its reports
        else:
            self._lookup_client.end_session(state.session_id)
