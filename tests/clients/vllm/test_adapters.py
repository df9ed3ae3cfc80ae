"""Adapters are identified by the content of their files, so that KV of one is never used for another."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvdepot.vllm import adapters as module
from kvdepot.vllm.adapters import Adapters
from tests.fakes.vllm import CHUNK, Request, SchedulerDriver

TABLE = ([1, 2, 3, 4, 5],)
Lora = Callable[..., Any]


@pytest.fixture(autouse=True)
def looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALID_SECONDS", 0.0)
    monkeypatch.setattr(module, "READ_SECONDS", 30.0)  # a machine under load may be slow


@pytest.fixture
def lora(tmp_path: Path) -> Lora:
    """A request's adapter; ``train`` it to write weights."""

    def made(path: Path = tmp_path / "sql", number: int = 1, load_inplace: bool = False) -> Any:
        return SimpleNamespace(lora_int_id=number, lora_name="sql", lora_path=str(path), load_inplace=load_inplace)

    return made


def train(folder: Path, weights: bytes) -> None:
    """Write weights of the same size and time, like tools that keep times."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    new = folder / "new"
    new.write_bytes(weights)
    os.utime(new, (1, 1))
    new.rename(folder / "adapter_model.safetensors")


def request_with(lora: Any, request_id: str = "request") -> Request:
    return Request(request_id, list(range(20)), lora_request=lora)


def test_adapter_that_was_trained_again_is_another_one_after_a_restart(tmp_path: Path, lora: Lora) -> None:
    train(tmp_path / "sql", b"one")
    one = Adapters().identity_of(lora())
    assert one is not None
    assert one.startswith(f"sql={tmp_path}/sql#")
    assert one == Adapters().identity_of(lora())
    train(tmp_path / "sql", b"two")
    assert Adapters().identity_of(lora()) not in (one, None)
    train(tmp_path / "sql", b"one")
    assert Adapters().identity_of(lora()) == one
    assert Adapters("other settings").identity_of(lora()) != one
    assert Adapters().of_request(None) is None


def test_files_of_training_do_not_count(tmp_path: Path, lora: Lora) -> None:
    train(tmp_path / "sql", b"one")
    adapters = Adapters()
    one = adapters.identity_of(lora())
    (tmp_path / "sql" / "optimizer.pt").write_bytes(b"state")
    (tmp_path / "sql" / "adapter_config.json").touch()
    assert adapters.identity_of(lora()) == one


def test_files_that_changed_in_a_live_engine_count_once_they_are_loaded_in_place(
    tmp_path: Path, lora: Lora, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "sql", b"one")
    adapters = Adapters()
    one = adapters.identity_of(lora())
    assert not adapters.was_replaced(lora())
    train(tmp_path / "sql", b"two")
    assert [adapters.identity_of(lora()) for _ in range(3)] == [None] * 3
    assert caplog.text.count("its files have changed since it was loaded") == 1
    two = adapters.identity_of(lora(load_inplace=True))
    assert two not in (one, None)
    assert adapters.identity_of(lora()) == two
    assert adapters.was_replaced(lora())
    assert adapters.identity_of(lora(number=2)) == two  # loaded anew, under the same name
    assert adapters.was_replaced(lora(number=2))
    adapters.engine_cache_emptied()
    assert adapters.identity_of(lora()) == two
    assert not adapters.was_replaced(lora())
    train(tmp_path / "sql", b"three")
    adapters.engine_cache_emptied()
    assert adapters.identity_of(lora()) is None  # an empty cache does not load it


def test_adapter_that_can_not_be_read_is_not_cached_and_that_is_said_once(
    lora: Lora, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapters = Adapters()
    assert [adapters.identity_of(lora()) for _ in range(3)] == [None] * 3
    assert caplog.text.count("its folder can't be read") == 1
    (tmp_path / "sql").mkdir()
    assert adapters.identity_of(lora()) is None
    train(tmp_path / "sql", b"one")
    assert adapters.identity_of(lora()) is not None


def test_long_names_stay_apart_and_the_depot_takes_them(tmp_path: Path, lora: Lora) -> None:
    long = tmp_path / ("x" * 200) / ("y" * 200) / ("z" * 200)
    long.mkdir(parents=True)
    identities = []
    for name in ("a", "b"):
        train(long / name, b"one")
        identities.append(Adapters().identity_of(lora(long / name)))
    assert all(each is not None and len(each.encode()) <= 512 for each in identities)
    assert identities[0] != identities[1]


def test_requests_look_up_and_store_under_the_content_of_their_adapter(tmp_path: Path, lora: Lora) -> None:
    train(tmp_path / "sql", b"one")
    driver, request = SchedulerDriver(), request_with(lora())
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.lookup_client.answer(0)
    driver.tables["request"] = TABLE
    (store,) = driver.step({request: 20}).stores
    expected = Adapters().identity_of(lora())
    assert (driver.lookup_client.calls[-1].prefix.adapter, store.adapter) == (expected, expected)


def test_request_whose_adapter_is_not_known_is_computed_and_not_stored(lora: Lora) -> None:
    driver, request = SchedulerDriver(), request_with(lora())
    driver.tables["request"] = TABLE
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert not driver.step({request: 20}).stores
    assert not driver.lookup_client.calls


def test_request_that_is_under_way_when_its_adapter_changes_stores_no_more(tmp_path: Path, lora: Lora) -> None:
    train(tmp_path / "sql", b"one")
    driver, request = SchedulerDriver(), request_with(lora(load_inplace=True))
    driver.tables["request"] = TABLE
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(0)
    (store,) = driver.step({request: CHUNK}).stores
    train(tmp_path / "sql", b"two")
    assert not driver.step({request: CHUNK}).stores
    waiting = request_with(lora(load_inplace=True), "waiting")
    driver.scheduler.arrived(waiting)
    train(tmp_path / "sql", b"three")
    assert driver.scheduler.matched_tokens(waiting, 0) == 0
    assert store.adapter != Adapters().identity_of(lora())


def test_answer_for_an_adapter_that_was_replaced_since_is_not_loaded(tmp_path: Path, lora: Lora) -> None:
    train(tmp_path / "sql", b"one")
    driver, request = SchedulerDriver(), request_with(lora(load_inplace=True))
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    train(tmp_path / "sql", b"two")
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert not driver.lookup_client.leased


def test_what_vllms_own_prefix_cache_has_of_a_replaced_adapter_is_not_stored_as_the_new_one(
    tmp_path: Path, lora: Lora
) -> None:
    train(tmp_path / "sql", b"one")
    driver = SchedulerDriver()
    driver.scheduler.matched_tokens(request_with(lora(), "before"), 0)
    train(tmp_path / "sql", b"two")
    stale, fresh = (request_with(lora(load_inplace=True), name) for name in ("stale", "fresh"))
    for request, local_tokens, num_stores in ((stale, CHUNK, 0), (fresh, 0, 1)):
        driver.tables[request.request_id] = TABLE
        driver.scheduler.matched_tokens(request, local_tokens)
        request.num_computed_tokens = local_tokens
        assert len(driver.step({request: 20 - local_tokens}).stores) == num_stores


def test_mount_that_hangs_costs_the_scheduler_a_bounded_time_once(
    tmp_path: Path, lora: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "sql", b"one")
    adapters = Adapters()
    one = adapters.identity_of(lora())
    adapters._reading._timeout_seconds = 0.25
    goes_on = threading.Event()
    scandir = os.scandir

    def hanging(path: Path) -> Any:
        goes_on.wait()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", hanging)
    try:
        start = time.monotonic()
        assert [adapters.identity_of(lora()) for _ in range(1000)] == [None] * 1000
        assert time.monotonic() - start < 10  # of 250 s, if each of them waited
    finally:
        goes_on.set()
    monkeypatch.setattr(os, "scandir", scandir)
    adapters._reading._timeout_seconds = 30.0
    deadline = time.monotonic() + 30
    while (found := adapters.identity_of(lora())) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == one
