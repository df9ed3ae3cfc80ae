"""The steps of the check that call a depot: attach, store, look up, retrieve, compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from kvdepot.cli.engine_check.kv import (
    Ids,
    blocks_for,
    canonical,
    compare,
    expected_memory,
    fill_with_noise,
    kv_of,
    put,
    usable_tokens,
)
from kvdepot.cli.engine_check.rank import Bytes, Rank, Wrong
from kvdepot.requests import token_prefix
from kvdepot.sync.attachment import Attachment
from kvdepot.sync.client import DepotClient
from kvdepot.sync.session import Session
from kvdepot.v1.cache_pb2 import LookupResponse, MissReason, Prefix


class Exercise:
    """An engine that is attached, all ranks of it. `run_id` separates its prompts from those of other runs."""

    def __init__(self, ranks: Sequence[Rank], attachments: Sequence[Attachment], run_id: str) -> None:
        self._ranks = ranks
        self._attachments = attachments
        self._run_id = run_id
        self.chunk_size = attachments[0].chunk_size
        self._num_usable = usable_tokens(ranks)
        if self._num_usable < self.chunk_size:
            raise Wrong(
                f"the engine has blocks for two prompts of {self._num_usable} tokens, and a chunk of this depot has "
                f"{self.chunk_size}: a factory for it makes blocks for {2 * self.chunk_size} tokens or more"
            )

    def lengths(self) -> list[int]:
        """Return the lengths of prompts to try: whole chunks, a token more and less, and what is no whole block."""
        size, most = self.chunk_size, self._num_usable
        lengths = {1, size - 1, size, size + 1, 2 * size, 2 * size + size // 2 + 1, most // size * size, most}
        return sorted(length for length in lengths if 0 < length <= most)

    @property
    def longest_whole(self) -> int:
        """The longest prompt of whole chunks; one of `lengths`."""
        return self._num_usable // self.chunk_size * self.chunk_size

    def store_and_retrieve(self, num_tokens: int) -> None:
        """Store a prompt from some blocks and retrieve it into others, on every rank.

        Raises: Wrong, DepotError.
        """
        prefix, kv = self._prompt(num_tokens), self._kv(num_tokens)
        self._expect_found(self._looked_up(f"before-{num_tokens}", prefix), 0, "before it was stored")
        with self._sessions(f"store-{num_tokens}") as sessions:
            for rank, session, of_rank in zip(self._ranks, sessions, kv, strict=True):
                fill_with_noise(rank)
                tables = blocks_for(rank, num_tokens, num_tokens).store
                put(rank, tables, of_rank)
                before = [each.copy() for each in rank.memory]
                stored = session.store(prefix, tables)
                compare(rank, before)
                whole = num_tokens // self.chunk_size * self.chunk_size
                if stored.stored_tokens != whole:
                    raise Wrong(
                        f"rank {rank.rank}: {stored.stored_tokens} of {whole} tokens were stored; "
                        f"{stored.refused_tokens} were refused: {stored.refusal.detail or 'no reason was given'}"
                    )
        self.retrieve(num_tokens)

    def retrieve(self, num_tokens: int, *, skip_chunks: int = 0) -> None:
        """Retrieve a stored prompt into blocks of other numbers, and compare all memory.

        Raises: Wrong, DepotError.
        """
        prefix, kv = self._prompt(num_tokens), self._kv(num_tokens)
        whole, skip_tokens = num_tokens // self.chunk_size * self.chunk_size, skip_chunks * self.chunk_size
        with self._sessions(f"retrieve-{num_tokens}-{skip_chunks}") as sessions:
            found = sessions[0].lookup(prefix, max_wait_seconds=5)
            self._expect_found(found, whole, "after it was stored")
            for rank, session, of_rank in zip(self._ranks, sessions, kv, strict=True):
                fill_with_noise(rank)
                tables = blocks_for(rank, num_tokens, num_tokens).retrieve
                expected = expected_memory(rank, tables, of_rank, max(whole, skip_tokens), skip_tokens)
                ready = session.retrieve(found, tables, skip_tokens=skip_tokens)
                if ready != whole:
                    raise Wrong(f"rank {rank.rank}: {ready} tokens were retrieved, and {whole} were found")
                compare(rank, expected)

    def canonical(self, num_tokens: int) -> None:
        """Compare what is stored with the canonical bytes, which engines with other layouts get.

        Raises: Wrong, DepotError.
        """
        prefix, kv = self._prompt(num_tokens), self._kv(num_tokens)
        with self._sessions(f"canonical-{num_tokens}") as sessions:
            found = sessions[0].lookup(prefix)
            for session, attachment, of_rank in zip(sessions, self._attachments, kv, strict=True):
                num_chunks = found.matched_tokens // self.chunk_size
                data = bytearray(num_chunks * attachment.chunk_bytes)
                session.retrieve_inline_into(found, data)
                for chunk in range(num_chunks):
                    start = chunk * self.chunk_size
                    expected = canonical(of_rank, start, start + self.chunk_size)
                    given = data[chunk * len(expected) : (chunk + 1) * len(expected)]
                    if given != expected:
                        raise Wrong(
                            f"rank {attachment.rank}: the canonical bytes of chunk {chunk} are not those of its tokens"
                        )

    def work_until_killed(self, on_work: Callable[[], None]) -> None:
        """Hold a lease, and store one prompt after the other."""
        num_tokens = self.longest_whole
        with self._sessions("killed") as sessions:
            sessions[0].lookup(self._prompt(num_tokens))
            for number in itertools.count(1):
                for rank, session in zip(self._ranks, sessions, strict=True):
                    tables = blocks_for(rank, num_tokens, number).store
                    session.store(token_prefix(_token_ids(num_tokens, number), cache_salt=self._run_id), tables)
                if number == 1:
                    on_work()

    def _prompt(self, num_tokens: int) -> Prefix:
        return token_prefix(_token_ids(num_tokens, seed=num_tokens + (1 << 20)), cache_salt=self._run_id)

    def _kv(self, num_tokens: int) -> list[list[Bytes]]:
        return [kv_of(rank, num_tokens, seed=num_tokens) for rank in self._ranks]

    def _looked_up(self, session_id: str, prefix: Prefix) -> LookupResponse:
        with self._attachments[0].session(session_id) as session:
            return session.lookup(prefix)

    @contextmanager
    def _sessions(self, session_id: str) -> Iterator[list[Session]]:
        """Open the session of a request on every rank."""
        with ExitStack() as stack:
            yield [stack.enter_context(attachment.session(session_id)) for attachment in self._attachments]

    def _expect_found(self, found: LookupResponse, num_tokens: int, when: str) -> None:
        if found.matched_tokens != num_tokens:
            why = f": {MissReason.Name(found.miss.reason).removeprefix('MISS_REASON_')}, {found.miss.detail}"
            reason = why if found.HasField("miss") else ""
            raise Wrong(f"{found.matched_tokens} tokens of the prompt were found {when}, not {num_tokens}{reason}")


@contextmanager
def attached(ranks: Sequence[Rank], client: DepotClient, instance_id: str, run_id: str) -> Iterator[Exercise]:
    """Attach all ranks during the block.

    Raises: Wrong, DepotError.
    """
    with ExitStack() as stack:
        attachments = [
            stack.enter_context(
                client.attach(
                    instance_id=instance_id,
                    model_name=f"check-engine-{run_id}",
                    groups=rank.groups,
                    regions=rank.regions,
                    world_size=len(ranks),
                    rank=rank.rank,
                    model_revision=rank.engine.model_revision,
                    block_hash_seed=rank.engine.block_hash_seed,
                )
            )
            for rank in ranks
        ]
        yield Exercise(ranks, attachments, run_id)


def _token_ids(num_tokens: int, seed: int) -> Ids:
    return np.random.default_rng(seed).integers(0, 1 << 31, num_tokens, np.int64)
