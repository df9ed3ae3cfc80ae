"""The backend, the fake interface of tests without the wheel, and the wheel's interface have equal signatures."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.e2e.sglang.engines import KvdepotHiCache

FAKE = Path(__file__).parents[2] / "fakes/sglang_package/sglang/srt/mem_cache/hicache_storage.py"
MODULE = "sglang.srt.mem_cache.hicache_storage"
VALUES = ("HiCacheStorageConfig", "HiCacheStorageExtraInfo", "PoolTransfer", "PoolTransferResult")


@pytest.fixture
def fake() -> ModuleType:
    """The fake interface, under another name."""
    spec = importlib.util.spec_from_file_location("fake_hicache_storage", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def parameters(function: Any) -> list[tuple[str, Any]]:
    """Return the names and defaults of a function's parameters."""
    return [(name, each.default) for name, each in inspect.signature(function).parameters.items()]


def methods(interface: Any) -> dict[str, Any]:
    """Return the methods that a class has itself."""
    return {name: each for name, each in vars(interface).items() if inspect.isfunction(each)}


def test_the_fake_has_the_wheels_methods_and_values(fake: ModuleType) -> None:
    real = importlib.import_module(MODULE)
    ours, theirs = methods(fake.HiCacheStorage), methods(real.HiCacheStorage)
    assert {name: parameters(each) for name, each in ours.items()} == {
        name: parameters(each) for name, each in theirs.items()
    }
    assert fake.HiCacheStorage.__abstractmethods__ == real.HiCacheStorage.__abstractmethods__
    for name in VALUES:
        fields = [[each.name for each in dataclasses.fields(getattr(module, name))] for module in (fake, real)]
        assert fields[0] == fields[1], name
    assert [each.value for each in fake.PoolHitPolicy] == [each.value for each in real.PoolHitPolicy]


def test_the_backend_takes_what_sglang_gives() -> None:
    real = importlib.import_module(MODULE).HiCacheStorage
    for name, method in methods(real).items():
        assert parameters(getattr(KvdepotHiCache, name)) == parameters(method), name
