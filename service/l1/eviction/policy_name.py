"""The names of the eviction policies."""

from __future__ import annotations

from enum import StrEnum


class PolicyName(StrEnum):
    """What decides which chunk leaves L1. With `AUTO`, the depot chooses among the others."""

    AUTO = "auto"
    LRU = "lru"
    LFU = "lfu"
    LRU2 = "lru2"
    LEARNED = "learned"
