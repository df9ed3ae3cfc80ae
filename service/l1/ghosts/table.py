"""The table of sampled chunks: what ghost caches know about each, in arrays, the least recently used one first."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

BYTES_PER_ENTRY = 176
"""Of the arrays, and of the dictionary with its numbers."""

_END = 0  # the entry that is none: the newest and the oldest one are its neighbours


class Table:
    """Up to `num_entries` chunks, each with an entry number from 1 on. They are in the order of their last uses.

    `residence[entry]` has a bit for each ghost cache that holds the chunk. `uses[entry]` is the number of its last use,
    in the order of uses. `bits[entry]` are of its key. `buckets[policy][entry]` is what the policy says about it.
    The arrays with `_np` are views of the others.
    """

    def __init__(self, num_entries: int, num_policies: int) -> None:
        self.num_entries = num_entries
        length = num_entries + 1
        self.older = array("i", bytes(4 * length))
        self.newer = array("i", bytes(4 * length))
        self.residence = array("i", bytes(4 * length))
        self.bits = array("H", bytes(2 * length))
        self.slot_bytes = array("q", bytes(8 * length))
        self.uses = array("q", bytes(8 * length))
        self.buckets = [array("q", bytes(8 * length)) for _ in range(num_policies)]
        self.residence_np: npt.NDArray[np.int32] = np.frombuffer(self.residence, dtype=np.int32)
        self.slot_bytes_np: npt.NDArray[np.int64] = np.frombuffer(self.slot_bytes, dtype=np.int64)
        self.uses_np: npt.NDArray[np.int64] = np.frombuffer(self.uses, dtype=np.int64)
        self.buckets_np: list[npt.NDArray[np.int64]] = [np.frombuffer(each, dtype=np.int64) for each in self.buckets]
        self._entries: dict[int, int] = {}  # by the hash of the key
        self.find = self._entries.get
        """Return the entry of a key, by its hash; None: it has none."""
        self._hashes = array("q", bytes(8 * length))
        self._free = 0  # linked by `newer`
        self._num_used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<Table {len(self)}/{self.num_entries} chunks>"

    @property
    def oldest(self) -> int:
        """The entry that was used least recently; 0: there is none."""
        return self.newer[_END]

    @property
    def is_full(self) -> bool:
        """Whether an entry must be removed before another one is added."""
        return len(self._entries) == self.num_entries

    def add(self, key_hash: int, bits: int, slot_bytes: int) -> int:
        """Add a chunk, as the one used last. The table is not full."""
        entry = self._free
        if entry:
            self._free = self.newer[entry]
        else:
            self._num_used += 1
            entry = self._num_used
        self._entries[key_hash] = entry
        self._hashes[entry] = key_hash
        self.bits[entry] = bits
        self.slot_bytes[entry] = slot_bytes
        self.residence[entry] = 0
        self._append(entry)
        return entry

    def move_to_end(self, entry: int) -> None:
        """Note that a chunk is the one used last."""
        self._unlink(entry)
        self._append(entry)

    def remove(self, entry: int) -> None:
        """Forget a chunk, which no ghost cache holds."""
        self._unlink(entry)
        del self._entries[self._hashes[entry]]
        self.residence[entry] = 0
        self.newer[entry], self._free = self._free, entry

    def entries(self) -> list[int]:
        """Return all entries, in no order."""
        return list(self._entries.values())

    def in_order(self) -> list[int]:
        """Return all entries, the least recently used first."""
        found = []
        entry = self.oldest
        while entry:
            found.append(entry)
            entry = self.newer[entry]
        return found

    def check(self) -> None:
        """Assert that each entry is in the order, and that those that are free hold nothing."""
        in_order = self.in_order()
        assert sorted(in_order) == sorted(self._entries.values())
        assert len(in_order) <= self.num_entries
        assert int(np.count_nonzero(self.residence_np)) <= len(in_order)

    def _unlink(self, entry: int) -> None:
        older, newer = self.older[entry], self.newer[entry]
        self.newer[older], self.older[newer] = newer, older

    def _append(self, entry: int) -> None:
        last = self.older[_END]
        self.older[entry], self.newer[entry] = last, _END
        self.newer[last] = self.older[_END] = entry
