"""Ghost caches of the policy LRU, of several sizes: each holds the chunks that were used last."""

from __future__ import annotations

from service.l1.ghosts.table import Table


class RecentCaches:
    """One cache for each of the first bits. All share the order of the table: `_oldest` is where each ends.

    `capacity_bytes[number]` are those of the sample.
    """

    def __init__(self, table: Table, num_caches: int) -> None:
        self._table = table
        self.capacity_bytes = [0.0] * num_caches
        self._used_bytes = [0] * num_caches
        self._oldest = [0] * num_caches
        self._all = (1 << num_caches) - 1

    def use(self, entry: int) -> None:
        """Put a chunk into all caches, as the one used last, and evict what is over then."""
        table = self._table
        residence = table.residence[entry]
        for number, oldest in enumerate(self._oldest):
            if oldest == entry:  # also where it stays the only one: it is the newest then
                self._oldest[number] = table.newer[entry] or entry
        table.move_to_end(entry)
        missing = self._all & ~residence
        if not missing:
            return
        table.residence[entry] = residence | self._all
        slot_bytes = table.slot_bytes[entry]
        for number, capacity_bytes in enumerate(self.capacity_bytes):
            if missing >> number & 1:
                self._used_bytes[number] += slot_bytes
                if not self._oldest[number]:
                    self._oldest[number] = entry
                if self._used_bytes[number] > capacity_bytes:
                    self._shrink(number, capacity_bytes)

    def remove(self, entry: int) -> None:
        """Take a chunk out of all caches."""
        table = self._table
        for number, oldest in enumerate(self._oldest):
            if table.residence[entry] >> number & 1:
                self._used_bytes[number] -= table.slot_bytes[entry]
                if oldest == entry:
                    self._oldest[number] = table.newer[entry]
        table.residence[entry] &= ~self._all

    def check(self) -> None:
        """Assert that each cache counts its bytes, and ends where its last chunk is."""
        table = self._table
        entries = table.in_order()
        for number in range(len(self.capacity_bytes)):
            held = [entry for entry in entries if table.residence[entry] >> number & 1]
            assert held == entries[len(entries) - len(held) :], "it holds others than those used last"
            assert self._oldest[number] == (held[0] if held else 0)
            assert self._used_bytes[number] == sum(table.slot_bytes[entry] for entry in held)

    def _shrink(self, number: int, capacity_bytes: float) -> None:
        table, bit = self._table, 1 << number
        oldest, used_bytes = self._oldest[number], self._used_bytes[number]
        while oldest and used_bytes > capacity_bytes:
            used_bytes -= table.slot_bytes[oldest]
            table.residence[oldest] ^= bit
            oldest = table.newer[oldest]
        self._oldest[number], self._used_bytes[number] = oldest, used_bytes
