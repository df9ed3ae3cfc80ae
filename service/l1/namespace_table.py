"""The table of namespaces: what the chunks of one namespace have in common, written once.

An entry takes as many cells of 256 bytes as it needs. It has a sum of its own, and each record of its chunks names
that sum. So a record whose namespace is damaged, or was replaced, is no record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from blake3 import blake3

from service.l1.format import CELL_BYTES

_HEAD = struct.Struct("<QI")  # the sum, and the bytes of the text

Facts = Mapping[str, str | int]
"""What a namespace is, as names and values."""


class NamespaceTable:
    """The entries in `memory`, whose size is a multiple of 256 bytes. `memory_id` has 32 bytes.

    A reader of a part of a table gives the number of its first cell. It only reads.
    """

    def __init__(self, memory: memoryview, memory_id: bytes, *, first_cell: int = 0) -> None:
        self._memory = memory
        self._first_cell = first_cell
        self._memory_id = memory_id
        self._used = bytearray(len(memory) // CELL_BYTES)  # 1: the cell is used
        self._num_cells: dict[int, int] = {}  # of each entry, by its first cell

    def __repr__(self) -> str:
        return f"<NamespaceTable {sum(self._used)}/{len(self._used)} cells>"

    def write(self, facts: Facts) -> tuple[int, int] | None:
        """Write an entry. Return its first cell and its sum. None: there is no space for it."""
        text = json.dumps(facts, separators=(",", ":")).encode()
        num_cells = -(-(_HEAD.size + len(text)) // CELL_BYTES)
        cell = self._used.find(bytes(num_cells))
        if cell < 0:
            return None
        own_sum = self._sum(cell, text)
        start = cell * CELL_BYTES
        entry = _HEAD.pack(own_sum, len(text)) + text
        self._memory[start : start + len(entry)] = entry
        self._keep(cell, num_cells)
        return cell, own_sum

    def erase(self, cell: int) -> None:
        """Erase an entry. No record may name it."""
        num_cells = self._num_cells.pop(cell)
        start = cell * CELL_BYTES
        self._memory[start : start + num_cells * CELL_BYTES] = bytes(num_cells * CELL_BYTES)
        self._used[cell : cell + num_cells] = bytes(num_cells)

    def read(self, cell: int, own_sum: int) -> Facts | None:
        """Return an entry that the process before this one wrote, and keep it. None: it is not there, or damaged."""
        if not 0 <= cell - self._first_cell < len(self._used):
            return None
        start = (cell - self._first_cell) * CELL_BYTES
        found_sum, text_bytes = _HEAD.unpack_from(self._memory, start)
        end = start + _HEAD.size + text_bytes
        if found_sum != own_sum or end > len(self._memory):
            return None
        text = bytes(self._memory[start + _HEAD.size : end])
        if self._sum(cell, text) != own_sum:
            return None
        self._keep(cell - self._first_cell, -(-(_HEAD.size + text_bytes) // CELL_BYTES))
        facts: Facts = json.loads(text)
        return facts

    def clear(self) -> None:
        """Erase all entries."""
        self._memory[:] = bytes(len(self._memory))
        self._used[:] = bytes(len(self._used))
        self._num_cells.clear()

    def _keep(self, cell: int, num_cells: int) -> None:
        self._used[cell : cell + num_cells] = b"\1" * num_cells
        self._num_cells[cell] = num_cells

    def _sum(self, cell: int, text: bytes) -> int:
        digest = blake3(cell.to_bytes(8, "little") + text, key=self._memory_id).digest(8)
        return int.from_bytes(digest, "little")
