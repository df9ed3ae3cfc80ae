"""The names of chunks: which blocks of an engine a chunk has. The table is bounded: the oldest names leave first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from telemetry.kv_events.named_chunk import NamedChunk


class Names:
    """Named chunks by name, and by the keys of all ranks. `on_change` is called with each chunk that may have changed.

    `on_change` has to lead to `forget` for a chunk that has expired. Only the event loop uses this.
    """

    def __init__(self, max_bytes: int, on_change: Callable[[NamedChunk], None] = lambda chunk: None) -> None:
        self.max_bytes = max_bytes
        self.on_change = on_change
        self.num_bytes = 0
        self.num_expired = 0
        self.external: set[bytes] = set()
        """The keys that a shared tier has, as far as the depot knows."""
        self._by_name: dict[bytes, NamedChunk] = {}
        self._by_key: dict[bytes, NamedChunk] = {}
        self._unexpired: dict[NamedChunk, None] = {}  # the oldest one first
        self._expired_bytes = 0
        self.of_key: Callable[[bytes], NamedChunk | None] = self._by_key.get
        self.of_name: Callable[[bytes], NamedChunk | None] = self._by_name.get

    def __repr__(self) -> str:
        return f"<Names of {len(self)} chunks, {self.num_bytes}/{self.max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._by_name)

    def all(self) -> Sequence[NamedChunk]:
        """Return all named chunks. A chunk comes after the one before it, unless that one left in between."""
        return list(self._by_name.values())

    def unknown(self, keys: Iterable[bytes]) -> list[int]:
        """Return the positions of the keys that have no name."""
        known = self._by_key
        return [position for position, key in enumerate(keys) if key not in known]

    def add(self, chunk: NamedChunk, family: bytes, keys: Sequence[bytes | None]) -> None:
        """Add a chunk, or keys of a chunk that is known. `keys[rank]` are those of a family of instances.

        A chunk that was known without tokens gets them. If there is no space, the oldest chunks expire.
        """
        known = self._by_name.get(chunk.name)
        if known is None:
            self._by_name[chunk.name] = known = chunk
        else:
            self.num_bytes -= known.num_bytes
            if known.has_expired:
                self._expired_bytes -= known.num_bytes
            if chunk.token_ids and not known.token_ids:
                _give_tokens(known, chunk)
        holder = known.holders.setdefault(family, [None] * len(keys))
        for rank, key in enumerate(keys):
            if key is not None and holder[rank] is None:
                holder[rank] = key
                self._by_key[key] = known
        self.num_bytes += known.num_bytes
        known.has_expired = False
        self._unexpired[known] = None
        self.on_change(known)
        while self.num_bytes - self._expired_bytes > self.max_bytes and len(self._unexpired) > 1:
            self._expire(next(iter(self._unexpired)))

    def forget(self, chunk: NamedChunk) -> None:
        """Forget a chunk that readers believe to be nowhere."""
        if chunk.is_forgotten:
            return
        chunk.is_forgotten = True
        self._unexpired.pop(chunk, None)
        del self._by_name[chunk.name]
        self.num_bytes -= chunk.num_bytes
        if chunk.has_expired:
            self._expired_bytes -= chunk.num_bytes
        for holder in chunk.holders.values():
            for key in holder:
                if key is not None and self._by_key.get(key) is chunk:
                    del self._by_key[key]
                    self.external.discard(key)

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
        assert self.num_bytes == sum(chunk.num_bytes for chunk in self._by_name.values())
        assert all(chunk.name == name and not chunk.is_forgotten for name, chunk in self._by_name.items())
        assert all(self._by_name.get(chunk.name) is chunk for chunk in self._by_key.values())
        assert self._expired_bytes == sum(chunk.num_bytes for chunk in self._by_name.values() if chunk.has_expired)
        assert self.external <= self._by_key.keys()
        assert {chunk for chunk in self._by_name.values() if not chunk.has_expired} == self._unexpired.keys()

    def _expire(self, chunk: NamedChunk) -> None:
        del self._unexpired[chunk]
        chunk.has_expired = True
        self._expired_bytes += chunk.num_bytes
        self.num_expired += 1
        self.on_change(chunk)


def _give_tokens(known: NamedChunk, better: NamedChunk) -> None:
    if known.replaced_hashes is None:
        known.replaced_hashes = known.block_hashes
    known.parent_hash, known.block_hashes = better.parent_hash, better.block_hashes
    known.token_ids, known.block_size, known.num_blocks = better.token_ids, better.block_size, better.num_blocks
    known.adapter, known.cache_salt = better.adapter, better.cache_salt
