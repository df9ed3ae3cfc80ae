"""Resets of vLLM's cache: the listener is also called for resets that vLLM refuses."""

from __future__ import annotations

import pytest

from kvdepot.vllm.resets import listen_for_resets


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


def listen(scheduler_class: type[Scheduler], manager: Manager) -> list[str]:
    """Return the list of calls, which grows with each one."""
    calls: list[str] = []
    listen_for_resets(
        scheduler_class,
        manager,
        on_reset=lambda: calls.append("reset"),
        on_emptied=lambda: calls.append("emptied"),
    )
    return calls


@pytest.fixture
def scheduler_class() -> type[Scheduler]:
    class Patched(Scheduler):
        """A class of each test's own: listening changes it."""

        reset_prefix_cache = Scheduler.reset_prefix_cache

    return Patched


def test_listener_is_called_for_a_refused_reset(scheduler_class: type[Scheduler]) -> None:
    manager = Manager()
    calls = listen(scheduler_class, manager)
    scheduler = scheduler_class(manager)
    manager.blocks_in_use = 1
    with pytest.raises(RuntimeError, match="in use"):
        scheduler.reset_prefix_cache(True, True)
    assert calls == ["reset"]
    manager.blocks_in_use = 0
    assert scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    assert calls == ["reset", "reset", "emptied"]


def test_reset_of_vllms_own_cache_leaves_the_depots(scheduler_class: type[Scheduler]) -> None:
    manager = Manager()
    calls = listen(scheduler_class, manager)
    assert scheduler_class(manager).reset_prefix_cache()
    manager.blocks_in_use = 1
    assert not scheduler_class(manager).reset_prefix_cache()
    assert calls == ["emptied"]


def test_each_listener_is_called_once_for_its_own_scheduler(scheduler_class: type[Scheduler]) -> None:
    managers = (Manager(), Manager())
    calls = [listen(scheduler_class, manager) for manager in managers]
    assert scheduler_class(managers[1]).reset_prefix_cache(reset_connector=True)
    assert scheduler_class(Manager()).reset_prefix_cache(reset_connector=True)
    assert calls == [[], ["reset", "emptied"]]
