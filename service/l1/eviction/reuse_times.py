"""Reuse times: how long after a use the next one comes, learned from a sample of the keys.

The time of a chunk runs in uses of chunks: after 1,000 uses of any chunks, a chunk is 1,000 older. So what is learned
does not depend on how busy an hour is, and a recorded trace gives the same at any speed.

Chunks are in classes by how often they were used, and by whether their session said that it goes on. Each class has a
survival curve: the part of its chunks that waits longer than an age for its next use. Chunks that still wait, or were
forgotten, count as waiting (E. L. Kaplan, P. Meier: Nonparametric Estimation from Incomplete Observations, 1958).
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from service.l1.keys import ChunkKey

_NUM_USE_CLASSES = 13  # 1, 2, 3, 4 uses, then two for each doubling: 64 uses or more are one class
NUM_CLASSES = 2 * _NUM_USE_CLASSES
"""Chunks whose sessions do not go on, as far as is known, and then those whose sessions said that they do."""

MAX_SAMPLED = 8_192
SAMPLED_PART = 8  # one key in so many
USES_PER_UPDATE = 2_048

_AGES_PER_DOUBLING = 2
_NUM_AGES = 48
_OLDEST_AGE = 2.0 ** ((_NUM_AGES - 1) / _AGES_PER_DOUBLING)
_PRIOR_WAITS = 20.0  # waits that a class is taken to have seen, all like those of all classes together
_KEPT_PER_UPDATE = 0.998  # of what was learned: half of it is forgotten after 700,000 uses

_edges = np.concatenate([[0.0], 2.0 ** (np.arange(_NUM_AGES) / _AGES_PER_DOUBLING)])
_widths = np.diff(_edges)


def class_of(num_uses: int, will_continue: bool) -> int:
    """Return the class of a chunk that was used so often, the last time by a session that goes on."""
    number = num_uses if num_uses <= 4 else min(int(2 * math.log2(num_uses)), _NUM_USE_CLASSES)
    return max(number, 1) - 1 + _NUM_USE_CLASSES * will_continue


class ReuseTimes:
    """The reuse times of each class, and what they say about a chunk of some age: its chance per time to wait.

    `hit_rates[class, age]` is the best rate of hits that keeping a chunk can have: over all times to keep it, the
    greatest chance of a use by then, divided by the mean time until the use or that end (the Gittins index; J. Gittins:
    Bandit Processes and Dynamic Allocation Indices, 1979). Its unit is hits per use of any chunk.
    """

    def __init__(self) -> None:
        self.hit_rates: npt.NDArray[np.float64] = np.zeros((NUM_CLASSES, _NUM_AGES))
        self.num_updates = 0
        self._reused = np.zeros((NUM_CLASSES, _NUM_AGES))
        self._forgotten = np.zeros((NUM_CLASSES, _NUM_AGES))
        self._entries: OrderedDict[ChunkKey, int] = OrderedDict()  # least recently used first
        self._classes = np.zeros(MAX_SAMPLED, dtype=np.int64)
        self._last_uses = np.zeros(MAX_SAMPLED)
        self._next_update = USES_PER_UPDATE

    def __repr__(self) -> str:
        return f"<ReuseTimes of {len(self._entries)} sampled keys, {self.num_updates} updates>"

    def note_use(self, key: ChunkKey, num_class: int, clock: int) -> None:
        """Note that a chunk was used at `clock`, and is of a class from now on."""
        if key[0] % SAMPLED_PART:
            return
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._reused[self._classes[entry], age_of(clock - self._last_uses[entry])] += 1
        elif len(self._entries) < MAX_SAMPLED:
            entry = len(self._entries)
        else:
            _, entry = self._entries.popitem(last=False)
            self._forgotten[self._classes[entry], age_of(clock - self._last_uses[entry])] += 1
        self._entries[key] = entry
        self._classes[entry] = num_class
        self._last_uses[entry] = clock

    def update(self, clock: int) -> bool:
        """Learn from the uses since the last update, if there were enough. Return whether `hit_rates` changed."""
        if clock < self._next_update:
            return False
        self._next_update = clock + USES_PER_UPDATE
        self.num_updates += 1
        self.hit_rates = _gittins(_hazards(self._reused, self._forgotten + self._waiting(clock)))
        self._reused *= _KEPT_PER_UPDATE
        self._forgotten *= _KEPT_PER_UPDATE
        return True

    def hit_rate(self, num_class: int, age: float) -> float:
        """Return the rate of hits of a chunk of this class and age."""
        return float(self.hit_rates[num_class, age_of(age)])

    def hit_rates_of(self, classes: npt.NDArray[np.int64], ages: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the rates of hits of many chunks, by their classes and ages."""
        return self.hit_rates[classes, _ages_of(ages)]

    def _waiting(self, clock: int) -> npt.NDArray[np.float64]:
        """Return how many sampled keys wait for their next use, by class and age."""
        num_entries = len(self._entries)
        numbers = _ages_of(np.maximum(clock - self._last_uses[:num_entries], 1.0))
        waiting = np.zeros((NUM_CLASSES, _NUM_AGES))
        np.add.at(waiting, (self._classes[:num_entries], numbers), 1.0)
        return waiting


def age_of(uses: float) -> int:
    """Return the number of the age that has lasted so many uses: two ages for each doubling."""
    if uses < 1:
        return 0
    return min(int(math.log2(uses) * _AGES_PER_DOUBLING) + 1, _NUM_AGES - 1)


def _ages_of(uses: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the numbers of many ages."""
    numbers = np.log2(np.maximum(uses, 0.5)) * _AGES_PER_DOUBLING + 1
    ages: npt.NDArray[np.int64] = np.clip(numbers, 0, _NUM_AGES - 1).astype(np.int64)
    return ages


def _hazards(reused: npt.NDArray[np.float64], waiting: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the chance of a use per unit of time, by class and age, of a chunk that has waited until that age."""
    ended = reused + waiting
    later = np.cumsum(ended[:, ::-1], axis=1)[:, ::-1] - ended
    exposure = (later + 0.5 * ended) * _widths  # chunks times the time that they were seen to wait in this age
    of_all = reused.sum(axis=0) / np.maximum(exposure.sum(axis=0), 1e-9)
    prior = _PRIOR_WAITS * _widths
    hazards: npt.NDArray[np.float64] = (reused + prior * of_all) / (exposure + prior)
    return hazards


def _gittins(hazards: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the Gittins index, by class and age, of waits with these hazards."""
    best = np.zeros_like(hazards)
    waiting = np.ones_like(hazards)  # [class, age of the beginning]: the chance to wait still, at the end so far
    hits = np.zeros_like(hazards)
    cost = np.zeros_like(hazards)
    for age, width in enumerate(_widths[:-1]):
        hazard = hazards[:, age : age + 1]
        begun = slice(0, age + 1)
        ending = waiting[:, begun] * -np.expm1(-hazard * width)
        hits[:, begun] += ending
        cost[:, begun] += np.where(hazard > 1e-15, ending / np.maximum(hazard, 1e-15), waiting[:, begun] * width)
        waiting[:, begun] -= ending
        np.maximum(best[:, begun], hits[:, begun] / cost[:, begun], out=best[:, begun])
    return best
