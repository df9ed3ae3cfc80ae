"""Resets of vLLM's cache: the scheduler's side is told of those that vLLM refuses, too."""

from __future__ import annotations

import pytest

from kvdepot.vllm.resets import follow


class Manager:
    """Of vLLM's KV cache; it refuses a reset while blocks are in use."""

    def __init__(self) -> None:
        self.blocks_in_use = 0


class Scheduler:
    """Of vLLM, as far as resets go."""

    def __init__(self, manager: Manager) -> None:
        self.kv_cache_manager = manager

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        is_done = not self.kv_cache_manager.blocks_in_use
        if reset_running_requests and not is_done:
            raise RuntimeError("blocks are in use")
        return is_done


class Side:
    def __init__(self) -> None:
        self.told: list[str] = []

    def reset(self) -> None:
        self.told.append("reset")

    def emptied(self) -> None:
        self.told.append("emptied")


@pytest.fixture
def scheduler_class() -> type[Scheduler]:
    class Patched(Scheduler):
        """A class of each test's own: following changes it."""

        reset_prefix_cache = Scheduler.reset_prefix_cache

    return Patched


def test_refused_reset_is_told(scheduler_class: type[Scheduler]) -> None:
    manager, side = Manager(), Side()
    follow(scheduler_class, manager, side)
    scheduler = scheduler_class(manager)
    manager.blocks_in_use = 1
    with pytest.raises(RuntimeError, match="in use"):
        scheduler.reset_prefix_cache(True, True)
    assert side.told == ["reset"]
    manager.blocks_in_use = 0
    assert scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    assert side.told == ["reset", "reset", "emptied"]


def test_reset_of_vllms_own_cache_leaves_the_depots(scheduler_class: type[Scheduler]) -> None:
    manager, side = Manager(), Side()
    follow(scheduler_class, manager, side)
    assert scheduler_class(manager).reset_prefix_cache()
    manager.blocks_in_use = 1
    assert not scheduler_class(manager).reset_prefix_cache()
    assert side.told == ["emptied"]


def test_each_side_is_told_of_its_own_scheduler_once(scheduler_class: type[Scheduler]) -> None:
    managers, sides = (Manager(), Manager()), (Side(), Side())
    for manager, side in zip(managers, sides, strict=True):
        follow(scheduler_class, manager, side)
    assert scheduler_class(managers[1]).reset_prefix_cache(reset_connector=True)
    assert scheduler_class(Manager()).reset_prefix_cache(reset_connector=True)
    assert [side.told for side in sides] == [[], ["reset", "emptied"]]
