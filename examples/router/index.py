"""Which depot holds which prefixes, in which medium, as its events tell.

A block's key is the router's own: a hash of the tokens from the start of the prompt to the end of the block. So the
index does not depend on how an engine or a depot hashes. What a depot calls a block is only used to find it again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from examples.router.events import AllBlocksCleared, BlockHash, BlockRemoved, BlockStored, Event

MEDIUM_WEIGHTS = {"GPU": 1.0, "CPU": 1.0, "CPU_PINNED": 1.0, "DISK": 0.5, "STORAGE": 0.5, "EXTERNAL": 0.0}
"""What a token in a medium is worth to the depot's choice. A shared tier is worth nothing: every depot can read it."""

Key = bytes


def namespace_of(adapter: str | None) -> Key:
    """Return the key before the first block. Prompts of two adapters share no key."""
    return _digest((adapter or "").encode())


def key_after(parent: Key, content: bytes) -> Key:
    """Return the key of a block behind another one, from the hash of its own tokens."""
    return _digest(parent + content)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


class Prompt:
    """The tokens of a request. The hash of each block is computed once, for all depots."""

    def __init__(self, tokens: Sequence[int] | npt.NDArray[np.int64], adapter: str | None = None) -> None:
        self._tokens = np.asarray(tokens, dtype="<i8")
        self._contents: dict[tuple[int, int], bytes] = {}
        self.namespace = namespace_of(adapter)

    def __repr__(self) -> str:
        return f"<Prompt of {len(self)} tokens>"

    def __len__(self) -> int:
        return len(self._tokens)

    def content(self, start: int, block_size: int) -> bytes:
        """Return the hash of a block's tokens alone."""
        content = self._contents.get((start, block_size))
        if content is None:
            content = _digest(self._tokens[start : start + block_size].tobytes())
            self._contents[start, block_size] = content
        return content


@dataclass(frozen=True, slots=True)
class Match:
    """What a depot has of a prompt from its start. `value` is the tokens, each weighed by its medium."""

    tokens: int = 0
    value: float = 0.0


@dataclass(slots=True)
class _Block:
    content: bytes
    parent: BlockHash | None
    media: set[str] = field(default_factory=set)
    key: Key | None = None
    """None: the block before it was never told, or is gone already. So its tokens are not known from the start."""


class DepotIndex:
    """The blocks of one model in one depot."""

    def __init__(self) -> None:
        self._blocks: dict[BlockHash, _Block] = {}
        self._by_key: dict[Key, _Block] = {}
        self._waiting: defaultdict[BlockHash, set[BlockHash]] = defaultdict(set)
        """By the block before them, blocks whose key is not known yet."""
        self._block_sizes: set[int] = set()

    def __repr__(self) -> str:
        return f"<DepotIndex {len(self._by_key)} blocks, {len(self._blocks) - len(self._by_key)} of unknown prefix>"

    def __len__(self) -> int:
        return len(self._by_key)

    def apply(self, event: Event) -> None:
        """Take an event in. Blocks without token ids and blocks that more than text names can't be found, nor kept."""
        match event:
            case BlockStored():
                self._store(event)
            case BlockRemoved():
                for block_hash in event.block_hashes:
                    self._remove(block_hash, event.medium or "GPU")
            case AllBlocksCleared():
                self.clear()

    def clear(self) -> None:
        """Forget all blocks."""
        for kept in (self._blocks, self._by_key, self._waiting, self._block_sizes):
            kept.clear()

    def _store(self, event: BlockStored) -> None:
        size, medium = event.block_size, event.medium or "GPU"
        if event.group_idx or medium not in MEDIUM_WEIGHTS:
            return  # other groups of a hybrid model have the same tokens
        if len(event.token_ids) != size * len(event.block_hashes):
            return
        parent: BlockHash | None = event.parent_block_hash
        prompt = Prompt(event.token_ids, event.lora_name)
        extra_keys = event.extra_keys or [None] * len(event.block_hashes)
        for number, (block_hash, extra) in enumerate(zip(event.block_hashes, extra_keys, strict=False)):
            if extra and extra != [event.lora_name]:
                return
            block = self._blocks.get(block_hash)
            if block is None:
                content = prompt.content(number * size, size)
                block = self._blocks[block_hash] = _Block(content, parent)
                if parent is None:
                    self._place(block_hash, block, prompt.namespace)
                elif (before := self._blocks.get(parent)) is not None and before.key is not None:
                    self._place(block_hash, block, before.key)
                else:
                    self._waiting[parent].add(block_hash)
            block.media.add(medium)
            parent = block_hash
            self._block_sizes.add(size)

    def _place(self, block_hash: BlockHash, block: _Block, parent_key: Key) -> None:
        """Give a block its key, and all blocks that wait behind it."""
        placed = [(block_hash, block, parent_key)]
        while placed:
            block_hash, block, parent_key = placed.pop()
            block.key = key_after(parent_key, block.content)
            self._by_key[block.key] = block
            placed += [(child, self._blocks[child], block.key) for child in self._waiting.pop(block_hash, ())]

    def _remove(self, block_hash: BlockHash, medium: str) -> None:
        block = self._blocks.get(block_hash)
        if block is None:
            return
        block.media.discard(medium)
        if block.media:
            return
        del self._blocks[block_hash]
        if block.key is None and block.parent is not None:
            self._waiting[block.parent].discard(block_hash)
            if not self._waiting[block.parent]:
                del self._waiting[block.parent]
        elif block.key is not None and self._by_key.get(block.key) is block:
            del self._by_key[block.key]

    def match(self, prompt: Prompt) -> Match:
        """Return the best of what it has of a prompt. Blocks of several sizes may follow each other."""
        best = Match()
        ends = [(prompt.namespace, best)]
        while ends:
            key, match = ends.pop()
            best = max(best, match, key=lambda match: (match.value, match.tokens))
            for size in self._block_sizes:
                if match.tokens + size <= len(prompt):
                    next_key = key_after(key, prompt.content(match.tokens, size))
                    block = self._by_key.get(next_key)
                    if block is not None:
                        weight = max(MEDIUM_WEIGHTS[medium] for medium in block.media)
                        ends.append((next_key, Match(match.tokens + size, match.value + weight * size)))
        return best
