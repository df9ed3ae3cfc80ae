"""What `KvdepotConnector` shows in vLLM and lets users limit. `test_connector` runs these tests with a stub of vLLM."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from kvdepot.connector.commands import StepCommands
from kvdepot.v1.cache_pb2 import Lease, LookupResponse
from kvdepot.vllm import KvdepotConnector
from tests.e2e.vllm.started_engines import OLD_MODEL, Start, compute, fake_depot, load, prompt, start
from tests.e2e.vllm.stub_engine import StubEngine
from tests.fakes.depot import FakeDepot

__all__ = ["fake_depot", "start"]


class Frontend:
    """The frontend of vLLM with two engines: it gets statistics as messages, and shows them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {kind: functools.partial(kind, registry=self.registry) for kind in (Counter, Gauge, Histogram)}
        labels: dict[int, list[object]] = {0: ["model", "0"], 1: ["model", "1"]}
        self.metrics = KvdepotConnector.build_prom_metrics(None, made, ["model_name", "engine"], labels)
        self.log = KvdepotConnector.build_kv_connector_stats()

    def take(self, engine: StubEngine, engine_index: int) -> None:
        """Take an engine's statistics as vLLM does: its scheduler sends them in a message."""
        assert engine.worker.get_kv_connector_stats() is None
        if (stats := engine.scheduler.get_kv_connector_stats()) is None:
            return
        sent = json.loads(json.dumps(stats.to_dict()))
        self.log = self.log.aggregate(KvdepotConnector.build_kv_connector_stats(json.loads(json.dumps(sent))))
        self.metrics.observe(sent, engine_index)

    def value(self, name: str, engine_index: int, **labels: str) -> float | None:
        named = {"model_name": "model", "engine": str(engine_index), **labels}
        return self.registry.get_sample_value(f"vllm:kvdepot_{name}", named)


def test_statistics_are_on_vllms_own_metrics_page_by_engine(start: Start) -> None:
    frontend = Frontend()
    assert frontend.value("tokens_total", 1, direction="load") == 0, "a rate needs the value before the first event"
    one, two = start("counted-one"), start("counted-two")
    compute(one, prompt(20, "first"), [3, 9, 4, 20, 7])
    load(two, prompt(20, "second"), [5, 6, 8, 11])
    two.run_idle()
    for index, engine in enumerate((one, two)):
        frontend.take(engine, index)
        frontend.take(engine, index)
    num_bytes = 16 * 2 * 8 * 4
    assert frontend.value("tokens_total", 0, direction="store") == 16
    assert frontend.value("tokens_total", 1, direction="load") == 16
    assert frontend.value("bytes_total", 0, direction="store") == num_bytes
    assert frontend.value("bytes_total", 1, direction="load") == num_bytes
    assert frontend.value("transfer_seconds_count", 1, direction="load") == 1
    assert frontend.value("transfer_seconds_count", 1, direction="store") == 0
    assert frontend.value("lookups_total", 0, result="miss") == 1
    assert frontend.value("lookups_total", 1, result="hit") == 1
    assert frontend.value("lookup_wait_seconds_count", 1) == 1
    assert frontend.value("attached_workers", 0) == frontend.value("attached_workers", 1) == 1
    line = frontend.log.reduce()
    assert (line["loaded tokens"], line["stored tokens"], line["lookups"]) == (16, 16, 2)


def test_failures_are_counted_by_reason(start: Start) -> None:
    frontend, engine = Frontend(), start("counted-failing")
    compute(engine, prompt(21, "first"), [3, 9, 4, 20, 7])

    def lose_lease(commands: StepCommands) -> None:
        for command in commands.loads:
            command.leases = ("no-such-lease",)

    request = prompt(21, "second")
    load(engine, request, [5, 6, 8, 11], change=lose_lease)
    engine.finish(request)
    frontend.take(engine, 0)
    assert frontend.value("failed_tokens_total", 0, direction="load") == 16
    assert frontend.value("failed_transfers_total", 0, direction="load", reason="LEASE_NOT_FOUND") == 1
    assert frontend.value("tokens_total", 0, direction="load") == 0


def test_multiconnector_finds_the_class_of_the_statistics_by_its_name() -> None:
    for _ in range(2):
        Frontend()
        assert KVConnectorFactory.get_connector_class_by_name("KvdepotConnector") is KvdepotConnector


@pytest.mark.parametrize(
    ("l2_tokens", "by_tier"), [(0, {"host": 16}), (6, {"host": 10, "disk": 6}), (99, {"disk": 16})]
)
def test_hits_are_split_by_tier(start: Start, fake_depot: FakeDepot, l2_tokens: int, by_tier: dict[str, int]) -> None:
    lease = Lease(lease_id="lease")
    lease.expire_time.FromSeconds(int(time.time()) + 3600)
    fake_depot.found = LookupResponse(matched_tokens=16, l2_tokens=l2_tokens, lease=lease)
    engine = start("tiered", fake_depot.address)
    request = prompt(1, "request")
    engine.add(request)
    assert engine.match(request) == (16, True)
    engine.allocate(request, [5, 6, 8, 11], 16)
    assert engine.scheduler.get_external_cache_hit_sources(request, 16) == by_tier
    assert engine.scheduler.get_external_cache_hit_sources(prompt(1, "unknown"), 0) == {}


EVENTS = SimpleNamespace(enable_kv_cache_events=True)
NO_EVENTS = SimpleNamespace(enable_kv_cache_events=False)


def events_of(engine: StubEngine) -> list[Any]:
    return list(engine.scheduler.take_events())


def test_stored_blocks_are_vllms_own_events(start: Start) -> None:
    engine = start("publishing", kv_events_config=EVENTS)
    lora = SimpleNamespace(
        adapter_id=7, name="sql", lora_int_id=7, lora_name="sql", lora_path=OLD_MODEL, load_inplace=False
    )
    (Path(OLD_MODEL) / "adapter_model.safetensors").write_bytes(b"weights")
    for lora_request, salt in ((None, None), (lora, "salt")):
        request = prompt(30, f"request of {lora_request}")
        request.lora_request, request.cache_salt = lora_request, salt
        compute(engine, request, [3, 9, 4, 20, 7])
        (event,) = events_of(engine)
        hashes = [int.from_bytes(each[-8:], "big") for each in request.block_hashes]
        assert (event.block_hashes, event.parent_block_hash) == (hashes[:4], None)
        assert (event.token_ids, event.block_size) == (request.tokens[:16], 4)
        assert (event.medium, event.group_idx) == ("CPU", 0)
        assert (event.lora_id, event.lora_name) == ((7, "sql") if lora_request else (None, None))
        expected = [("sql", "salt"), ("sql",), ("sql",), ("sql",)] if lora_request else [None] * 4
        assert event.extra_keys == expected
        engine.scheduler.reset_cache()  # the next one has the same hashes here
        (removed,) = events_of(engine)
        assert (removed.block_hashes, removed.medium, removed.group_idx) == (hashes[:4], "CPU", 0)


def test_chunks_of_a_longer_prompt_name_their_parent(start: Start) -> None:
    engine = start("publishing-more", kv_events_config=EVENTS)
    request = prompt(31, "request")
    engine.add(request)
    assert engine.match(request) == (0, False)
    engine.allocate(request, [3, 9, 4, 20, 7], 0)
    engine.step({"request": 10}, new=["request"])
    engine.step({"request": 10})
    engine.finish(request)
    first, second = events_of(engine)
    assert second.parent_block_hash == first.block_hashes[-1]
    assert first.token_ids + second.token_ids == request.tokens[:16]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kv_events_config": NO_EVENTS},
        {"kv_events_config": EVENTS, "kv_transfer_config__is_kv_consumer": False},
    ],
    ids=["without events", "events are off", "an engine that loads nothing"],
)
def test_nothing_is_published_that_nobody_reads(start: Start, changes: dict[str, Any]) -> None:
    engine = start("silent", **changes)
    request = prompt(32, "request")
    engine.add(request)
    engine.match(request)
    engine.allocate(request, [3, 9, 4, 20, 7], 0)
    engine.step({"request": 20}, new=["request"])
    engine.finish(request)
    assert events_of(engine) == []


def test_setting_turns_events_off(start: Start) -> None:
    engine = start("silenced", kv_events_config=EVENTS, settings={"kvdepot.publish_blocks": False})
    compute(engine, prompt(33, "request"), [3, 9, 4, 20, 7])
    assert events_of(engine) == []


def test_setting_store_prompts_only(start: Start) -> None:
    engine, other = start("prompts", settings={"kvdepot.store_prompts_only": True}), start("reader of prompts")
    request = prompt(34, "request")
    request.num_generated_tokens = 5
    compute(engine, request, [3, 9, 4, 20, 7])
    found = prompt(34, "found")
    other.add(found)
    assert other.match(found) == (8, True)
    other.allocate(found, [1, 2, 3, 4, 5], 0)
    other.finish(found)
