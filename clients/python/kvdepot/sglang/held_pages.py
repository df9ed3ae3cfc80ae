"""Pages of SGLang's host pools that the depot may still touch. They stay out of use until it certainly does not.

SGLang frees the pages of a call when the call has ended, also if it ended without the depot's answer. So the `free` of
each pool is replaced by one that keeps such pages back, and gives them to the pool when the depot is done with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class HeldPages:
    """The pages of running and of uncertain transfers. Any thread may use it.

    Pools that use one another's indices have their pages in common, so each pool keeps the pages of all transfers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}  # by transfer: tokens per page, and the pages
        self._kept: list[tuple[Any, Callable[[Any], Any], Any]] = []  # a pool, its own `free`, and indices
        self._watched: list[tuple[Any, Any, Any]] = []

    def watch(self, pool: Any) -> None:
        """Replace the `free` and the `clear` of a pool, until `close`."""
        free, clear = pool.free, pool.clear
        self._watched.append((pool, free, clear))

        def guarded_free(indices: Any) -> int:
            self._free(pool, free, indices)
            return len(indices)

        def guarded_clear() -> None:
            with self._lock:
                self._kept = [kept for kept in self._kept if kept[0] is not pool]
                is_holding = bool(self._pages)
            clear()
            if is_holding and (everything := pool.alloc(pool.available_size())) is not None:
                self._free(pool, free, everything)  # all but the held ones

        pool.free, pool.clear = guarded_free, guarded_clear

    def hold(self, transfer_id: int, page_size: int, pages: Sequence[int]) -> None:
        """Keep the pages of a transfer that begins."""
        with self._lock:
            self._pages[transfer_id] = (page_size, np.array(pages, np.int64))

    def release(self, transfer_ids: Iterable[int]) -> None:
        """Give back what was freed of the pages of these transfers. The depot does not touch them again."""
        with self._lock:
            for transfer_id in transfer_ids:
                self._pages.pop(transfer_id, None)
            waiting, self._kept = self._kept, []
        for pool, free, indices in waiting:
            self._free(pool, free, indices)

    def close(self) -> bool:
        """Give the pools their own methods back. Return False, and leave them, if the depot may still touch pages."""
        with self._lock:
            if self._pages:
                return False
            while self._watched:
                pool, free, clear = self._watched.pop()
                pool.free, pool.clear = free, clear
        return True

    @property
    def num_kept(self) -> int:
        """Indices that SGLang has freed and that are kept here."""
        with self._lock:
            return sum(int(indices.numel()) for _, _, indices in self._kept)

    def _free(self, pool: Any, free: Callable[[Any], Any], indices: Any) -> None:
        """Free indices, and keep those of held pages. The lock is held until both are apart."""
        with self._lock:
            held = self._held(indices)
            if held.any():
                mask = indices.new_tensor(held).bool()
                self._kept.append((pool, free, indices[mask]))
                indices = indices[~mask]
        if indices.numel():
            free(indices)

    def _held(self, indices: Any) -> npt.NDArray[np.bool_]:
        numbers: npt.NDArray[np.int64] = indices.cpu().numpy()
        held = np.zeros(len(numbers), np.bool_)
        for page_size, pages in self._pages.values():
            held |= np.isin(numbers // page_size, pages)
        return held
