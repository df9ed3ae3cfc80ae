"""Prefixes of requests in whole chunks, by the hashes of the engine's blocks."""

from __future__ import annotations

from array import array

from kvdepot.connector.attached_workers import AttachedWorkers
from kvdepot.connector.request_state import EngineRequest, RequestState
from kvdepot.connector.scheduler_settings import SchedulerSettings
from kvdepot.connector.weight_generation import WeightGeneration
from kvdepot.v1.cache_pb2 import Prefix


class ChunkPrefixes:
    """The prefixes of one engine's requests."""

    def __init__(self, workers: AttachedWorkers, settings: SchedulerSettings, generation: WeightGeneration) -> None:
        self._workers = workers
        self._hash_block_size = settings.hash_block_size
        self._has_states = settings.has_states
        self._generation = generation

    def salt(self, state: RequestState) -> str:
        """Return the salt of a request's keys."""
        return self._generation.salt(state.traits.cache_salt)

    def whole_tokens(self, request: EngineRequest, max_tokens: int) -> int:
        """Return the tokens of all whole chunks with known hashes, up to `max_tokens`; 0 while there is no depot."""
        chunk_size = self._workers.chunk_size
        if not chunk_size:
            return 0
        return min(len(request.block_hashes) * self._hash_block_size, max_tokens) // chunk_size * chunk_size

    def hashes(self, request: EngineRequest, end: int) -> list[bytes]:
        """Return the hash of each chunk's last block, up to token `end`. It covers all tokens up to there."""
        per_chunk = self._workers.chunk_size // self._hash_block_size
        return list(request.block_hashes[per_chunk - 1 : end // self._hash_block_size : per_chunk])

    def tokens(self, state: RequestState, end: int) -> array[int]:
        """Return the tokens up to `end` if the depot wants them and they are all that the KV comes from; else none."""
        if not (self._workers.wants_token_ids and state.traits.has_token_ids and state.traits.has_only_tokens):
            return array("I")
        return array("I", state.request.all_token_ids[:end])

    def to_look_up(self, state: RequestState, wanted: int) -> Prefix:
        """Return the prefix of all whole chunks, to find all that is stored; with states, that of `wanted` tokens.

        A match ends with a state, so that no part of a longer match could be loaded.
        """
        request = state.request
        end = wanted if self._has_states else self.whole_tokens(request, request.num_tokens)
        return Prefix(
            block_hashes=self.hashes(request, end),
            hash_block_size=self._workers.chunk_size,
            cache_salt=self.salt(state),
            adapter=state.adapter_identity,
        )
