"""The settings of the connector's scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from kvdepot.connector.cache_groups import CacheGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """The settings that the engine's start fixes. `hash_block_size` is how many tokens each block hash covers.

    `training_run` and `reset_means_new_weights` are described at `ConnectorConfig`.

    `prefill_tokens_per_second` is 0 if it is measured. The engine schedules at most `steps_ahead` steps while one runs.
    With `store_prompts_only`, no generated token is stored. With `publishes_blocks`, the engine publishes which blocks
    it has stored.
    """

    hash_block_size: int
    groups: tuple[CacheGroup, ...]
    num_blocks: int
    num_workers: int
    loads: bool
    stores: bool
    lookup_timeout_seconds: float
    lease_hold_seconds: float
    longest_transfer_seconds: float
    prefill_tokens_per_second: float
    steps_ahead: int
    store_prompts_only: bool = False
    publishes_blocks: bool = False
    training_run: str = ""
    reset_means_new_weights: bool = True

    @property
    def has_states(self) -> bool:
        """Whether a group holds states, so that a load must end exactly where the depot's match does."""
        return any(group.holds_state for group in self.groups)

    @property
    def may_load_partially(self) -> bool:
        """Whether the engine can go on after any block of a load.

        With a window, it would need blocks before the end of the shorter load that the longer one did not fill.
        """
        return len(self.groups) == 1 and self.groups[0].is_full
