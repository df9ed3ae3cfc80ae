"""Changes of vLLM's weights: the calls that make them, and the versions that name them."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest

from kvdepot.vllm.weight_updates import changes_weights, listen_for_weights


class Manager:
    """Of vLLM's KV cache."""


class EngineCore:
    """Of vLLM, as far as weights go."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def collective_rpc(self, method: Any, timeout: float | None = None, args: Any = (), kwargs: Any = None) -> str:
        self.calls.append(f"done {getattr(method, '__name__', method)}")
        return "answer"

    def sleep(self, level: int = 1, mode: str = "abort") -> str:
        self.calls.append(f"slept {level}")
        return "asleep"

    def set_weight_version(self, weight_version: str) -> None:
        if not weight_version:
            raise ValueError("no version")
        self.calls.append(f"set {weight_version}")


@pytest.fixture
def core_class() -> type[EngineCore]:
    class Patched(EngineCore):
        """A class of each test's own: listening changes it."""

    return Patched


def engine(core_class: type[EngineCore]) -> tuple[EngineCore, list[str], Manager]:
    """Return an engine that is listened to, and the list of what happened."""
    calls: list[str] = []
    manager = Manager()
    listen_for_weights(
        core_class,
        manager,
        on_change=lambda reason: calls.append(f"change: {reason}"),
        on_version=lambda version: calls.append(f"version: {version}"),
    )
    core = core_class(calls)
    core.scheduler = SimpleNamespace(kv_cache_manager=manager)  # type: ignore[attr-defined]
    return core, calls, manager


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("update_weights", True),
        ("start_weight_update", True),
        ("start_draft_weight_update", True),
        ("finish_weight_update", True),
        ("reload_weights", True),
        ("reset_weights", True),
        ("load_model", True),
        ("apply_model", True),
        ("update_weights_from_ipc", True),
        ("_update_weights", True),
        ("UpdateWeights", True),
        ("update_named_param", True),
        ("batch_update_named_params", True),
        ("load_state_dict", True),
        ("compute_weight_checksums", False),
        ("init_weight_transfer_engine", False),
        ("shutdown_weight_transfer_engine", False),
        ("get_weights_by_name", False),
        ("synchronize_device", False),
        ("profile", False),
        ("reset_encoder_cache", False),
        ("", False),
        (None, False),
    ],
)
def test_calls_of_workers_that_may_change_weights(method: Any, changes: bool) -> None:
    assert changes_weights(method) == changes


def test_listener_knows_of_an_update_before_the_workers_begin(core_class: type[EngineCore]) -> None:
    core, calls, _ = engine(core_class)

    def load_weights(worker: Any) -> None: ...

    assert core.collective_rpc("update_weights", kwargs={"update_info": {}}) == "answer"
    assert core.collective_rpc(load_weights) == "answer"
    core.collective_rpc(method="synchronize_device")
    core.collective_rpc(lambda worker: worker)
    assert calls == [
        "change: vLLM's workers are told to update_weights",
        "done update_weights",
        "change: vLLM's workers are told to load_weights",
        "done load_weights",
        "done synchronize_device",
        "done <lambda>",
    ]


def test_version_counts_once_vllm_has_it(core_class: type[EngineCore]) -> None:
    core, calls, _ = engine(core_class)
    core.set_weight_version("12")
    core.set_weight_version(weight_version="13")
    with pytest.raises(ValueError, match="no version"):
        core.set_weight_version("")
    assert calls == ["set 12", "version: 12", "set 13", "version: 13"]


def test_only_sleep_that_discards_weights_changes_them(core_class: type[EngineCore]) -> None:
    core, calls, _ = engine(core_class)
    assert core.sleep() == core.sleep(0) == core.sleep(level=1, mode="keep") == "asleep"
    assert not [call for call in calls if call.startswith("change")]
    calls.clear()
    core.sleep(level=2)
    assert calls == ["change: vLLM sleeps at level 2, which discards the weights", "slept 2"]


def test_engines_of_one_process_are_told_apart_and_forgotten(core_class: type[EngineCore]) -> None:
    (one, of_one, manager), (_, of_other, _) = engine(core_class), engine(core_class)
    one.set_weight_version("1")
    starting = core_class(of_one)  # it has no scheduler yet
    starting.collective_rpc("load_model")
    assert (of_one, of_other) == (["set 1", "version: 1", "done load_model"], [])
    one.scheduler = None  # type: ignore[attr-defined]
    del manager
    gc.collect()
    one.set_weight_version("2")
    assert of_one[-1] == "set 2"


def test_engine_core_without_weight_versions_starts() -> None:
    class Older:
        def collective_rpc(self, method: str) -> str:
            return method

    listen_for_weights(Older, Manager(), on_change=lambda _: None, on_version=lambda _: None)
    assert Older().collective_rpc("update_weights") == "update_weights"
