"""Tests of `KvdepotConnector`, the class that vLLM loads. `test_connector` runs them with a stub of vLLM."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.engine.core import EngineCore

from kvdepot import DepotClient
from kvdepot.connector.commands import StepCommands, TransferOutcome, WorkerReport
from kvdepot.connector.config import ConfigError
from kvdepot.v1.admin_pb2 import Instance
from kvdepot.v1.cache_pb2 import Lease, LookupResponse, Miss, RetrieveResponse
from kvdepot.vllm import KvdepotConnector
from kvdepot.vllm.adapters import VALID_SECONDS
from kvdepot.vllm.metadata import ReportMetadata
from kvdepot.vllm.support import Unsupported
from tests.e2e.vllm.started_engines import DEPOT, OLD_MODEL, Start, compute, fake_depot, load, prompt, start
from tests.e2e.vllm.stub_engine import StubEngine, config_of
from tests.fakes.depot import FakeDepot
from tests.fakes.vllm import Group, KvCacheConfig, Request, request_of
from tests.fakes.waiting import wait_until

__all__ = ["fake_depot", "start"]

CACHES = KvCacheConfig(8, [Group(["layer.0"])])


def test_prompt_that_one_engine_stored_is_loaded_by_another(start: Start) -> None:
    one, two = start("one"), start("two")
    compute(one, prompt(1, "first"), [3, 9, 4, 20, 7])
    request = prompt(1, "second")
    load(two, request, [5, 6, 8, 11])
    assert two.failed == set()
    assert torch.equal(two.cache[[5, 6, 8, 11]], one.cache[[3, 9, 4, 20]])
    two.allocate(request, [5, 6, 8, 11, 12], 0)  # vLLM's second call, after the load
    request.num_computed_tokens = 16
    two.step({"second": 4}, new=["second"])
    two.finish(request)
    assert one.pool.kept == two.pool.kept == {}
    with DepotClient(DEPOT) as client:
        wait_until(lambda: client.get_status().num_sessions == 0)
        assert client.get_status().num_leases == 0


def test_engines_share_kv_only_if_their_weights_are_older_than_they_are(start: Start, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"written while the engines run")
    for model, shares in ((OLD_MODEL, True), (str(tmp_path), False)):
        one, two = (start(f"{name} of {model}", model_config__model=model) for name in ("one", "two"))
        compute(one, prompt(7, "first"), [3, 9, 4, 20, 7])
        request = prompt(7, "second")
        if shares:
            load(two, request, [5, 6, 8, 11])
            assert two.failed == set()
            assert torch.equal(two.cache[[5, 6, 8, 11]], one.cache[[3, 9, 4, 20]])
            two.finish(request)
        else:
            compute(two, request, [5, 6, 8, 11, 12])


def test_engine_attaches_with_the_revision_of_its_weights_and_the_seed_of_its_hashes(start: Start) -> None:
    start("named", model_config__model=OLD_MODEL)
    instance = listed("named")
    assert instance.model_revision.startswith("files-")
    assert instance.block_hash_seed.startswith("vllm sha256")


def test_engine_of_unknown_weights_has_another_revision_after_each_start(start: Start) -> None:
    revisions = []
    for instance_id in ("of-the-first-start", "of-the-second-start"):  # vLLM's own id; the engine's may be fixed
        engine = start("fixed", model_config__model="s3://models/a", instance_id=instance_id)
        revisions.append(listed("fixed").model_revision)
        engine.close()
    assert revisions == ["unknown-fixed-of-the-first-start", "unknown-fixed-of-the-second-start"]


def listed(instance_id: str) -> Instance:
    """Return an attached instance."""
    with DepotClient(DEPOT) as client:
        (found,) = [each for each in client.list_instances().instances if each.instance_id == instance_id]
    return found


def test_failed_load_is_reported_by_its_request(start: Start) -> None:
    engine = start("failing")
    compute(engine, prompt(2, "first"), [3, 9, 4, 20, 7])

    def lose_lease(commands: StepCommands) -> None:
        for command in commands.loads:
            command.leases = ("no-such-lease",)

    request = prompt(2, "second")
    load(engine, request, [5, 6, 8, 11], change=lose_lease)
    assert (engine.loaded, engine.failed) == ({"second"}, {"second"})
    engine.finish(request)
    assert engine.pool.kept == {}


def test_partial_load_is_reported_by_the_blocks_that_it_did_not_fill(start: Start, fake_depot: FakeDepot) -> None:
    lease = Lease(lease_id="lease")
    lease.expire_time.FromSeconds(int(time.time()) + 3600)
    fake_depot.found = LookupResponse(matched_tokens=16, lease=lease)
    fake_depot.retrieved = RetrieveResponse(retrieved_tokens=8, miss=Miss(detail="a tier was late"))
    engine = start("one", fake_depot.address)
    request = prompt(1, "request")
    load(engine, request, [5, 6, 8, 11])
    assert (engine.failed, engine.invalid_blocks) == (set(), {8, 11})
    assert engine.worker.get_block_ids_with_load_errors() == set()
    request.num_computed_tokens = 8  # as vLLM does then
    engine.allocate(request, [5, 6, 8, 11, 12], 0)
    engine.step({"request": 12}, new=["request"])
    engine.finish(request)
    assert engine.pool.kept == {}
    assert fake_depot.last("Store").start_token == 8


def test_another_cache_of_the_worker_takes_the_place_of_the_one_before(start: Start) -> None:
    engine, other = start("moving"), start("other")
    engine.register()
    engine.run_idle()
    compute(engine, prompt(3, "first"), [1, 2, 3, 4, 5])
    load(other, prompt(3, "second"), [5, 6, 8, 11])
    assert torch.equal(other.cache[[5, 6, 8, 11]], engine.cache[[1, 2, 3, 4]])


def test_new_running_and_resumed_requests_are_reported_with_their_blocks(start: Start, fake_depot: FakeDepot) -> None:
    engine = start("reporting", fake_depot.address)
    engine.run_idle()
    request = request_of(14)
    engine.add(request)
    engine.allocate(request, [5, 6], 0)
    engine.step({"request": 8}, new=["request"])
    engine.step({"request": 2}, cached=[("request", ([7],))])
    engine.step({"request": 1}, cached=[("request", None)])
    request.num_computed_tokens = 0
    engine.step({"request": 4}, cached=[("request", ([8],))], resumed=["request"])
    engine.finish(request)

    def records() -> list[tuple[list[int], bool]]:
        reports = [each for name, each in list(fake_depot.requests) if name == "ReportBlockAllocation"]
        return [(list(record.block_ids), record.resumed) for report in reports for record in report.records]

    wait_until(lambda: len(records()) == 3)
    assert records() == [([5, 6], False), ([7], False), ([8], True)]


def test_reset_of_vllms_scheduler_changes_the_salt_even_if_vllm_refuses_it(start: Start, fake_depot: FakeDepot) -> None:
    engine = start("resetting", fake_depot.address)
    engine.run_idle()

    def salt(request_id: str) -> str:
        engine.add(request_of(20, request_id))
        engine.scheduler.get_num_new_matched_tokens(engine.requests[request_id], 0)
        wait_until(
            lambda: request_id in [each.session_id for name, each in list(fake_depot.requests) if name == "Lookup"]
        )
        return str(fake_depot.last("Lookup").prefix.cache_salt)

    before = salt("before")
    assert engine.vllm_scheduler.reset_prefix_cache()
    assert salt("own cache only") == before
    engine.pool.touch([engine.pool.blocks[1]])
    assert not engine.vllm_scheduler.reset_prefix_cache(reset_connector=True)
    after = salt("after")
    assert after != before
    assert engine.scheduler.reset_cache()
    assert salt("last") not in (before, after)


def test_engines_share_again_once_their_weights_have_one_version(start: Start) -> None:
    settings = {"kvdepot.training_run": "run"}
    engines = [start(name, settings=settings) for name in ("trained-a", "trained-b")]
    a, b = engines
    cores = [EngineCore(engine.vllm_scheduler) for engine in engines]
    tokens = 5000

    def found(engine: StubEngine, request_id: str, first: int) -> int:
        """Return how many tokens of a prompt are found; it is stored if none are."""
        request = Request(request_id=request_id, tokens=list(range(first, first + 20)))
        engine.add(request)
        num_tokens = engine.match(request)[0]
        engine.allocate(request, [1, 2, 3, 4, 5], num_tokens)
        if not num_tokens:
            engine.step({request_id: 20}, new=[request_id])
        engine.finish(request)
        return num_tokens

    assert (found(a, "a-0", tokens), found(b, "b-0", tokens)) == (0, 16)
    for engine in engines:
        assert engine.vllm_scheduler.reset_prefix_cache()
    cores[0].collective_rpc("update_weights", kwargs={"update_info": {}})
    assert found(a, "a-1", tokens) == 0, "it finds KV of the weights before"
    cores[0].set_weight_version("1200")
    assert found(a, "a-2", tokens) == 0, "it finds KV of weights without a version"
    assert found(b, "b-1", tokens) == 16, "the other engine has the weights of before"
    cores[1].sleep(level=2)
    assert found(b, "b-2", tokens) == 0
    cores[1].set_weight_version("1200")
    assert found(b, "b-3", tokens) == 16
    assert cores[0].done == ["update_weights", "version 1200"]


def test_engine_shares_across_a_reset_that_leaves_the_weights(start: Start) -> None:
    engine = start("paused", settings={"kvdepot.reset_means_new_weights": False})
    request = Request(request_id="one", tokens=list(range(6000, 6020)))
    compute(engine, request, [1, 2, 3, 4, 5])
    assert engine.vllm_scheduler.reset_prefix_cache(reset_connector=True)
    assert engine.scheduler.reset_cache()
    load(engine, Request(request_id="two", tokens=request.tokens), [6, 7, 8, 9, 10])


def test_engine_with_another_block_size_is_warned_when_it_attaches(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    start("blocks-of-4")
    assert "other block hashes" not in caplog.text
    start("blocks-of-8", block_size=8)
    assert "other block hashes (vllm sha256 of 4 tokens default seed), so this engine (vllm sha256 of 8 " in caplog.text


def test_what_builds_on_vllms_own_cache_is_stored_once_that_is_emptied(start: Start, fake_depot: FakeDepot) -> None:
    engine = start("stale", fake_depot.address)
    engine.run_idle()
    before = request_of(4, "before")
    engine.add(before)
    engine.allocate(before, [1], 0)
    engine.step({"before": 4}, new=["before"])
    engine.finish(before)
    engine.scheduler.reset_cache()

    def stored_sessions() -> list[str]:
        return [each.session_id for name, each in list(fake_depot.requests) if name == "Store"]

    for request_id in ("stale", "trusted"):
        request = request_of(20, request_id)
        engine.add(request)
        engine.scheduler.get_num_new_matched_tokens(request, 8)
        engine.allocate(request, [1, 2, 3, 4, 5], 0)
        request.num_computed_tokens = 8
        engine.step({request_id: 12}, new=[request_id])
        engine.finish(request)
        assert engine.vllm_scheduler.reset_prefix_cache()
    assert stored_sessions() == ["trusted"]


def test_replaced_adapter_is_trusted_once_vllms_own_cache_is_emptied(
    start: Start, fake_depot: FakeDepot, tmp_path: Path
) -> None:
    engine = start("adapted", fake_depot.address)
    adapters = engine.scheduler._adapters
    lora = SimpleNamespace(lora_int_id=1, lora_name="sql", lora_path=str(tmp_path), load_inplace=True)
    for weights in (b"one", b"two"):
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        time.sleep(2 * VALID_SECONDS)
        assert adapters.identity_of(lora) is not None
    assert adapters.was_replaced(lora)
    assert engine.vllm_scheduler.reset_prefix_cache()
    assert not adapters.was_replaced(lora)


def test_reports_of_workers_are_added_up_and_pickled() -> None:
    reports = [
        ReportMetadata(
            WorkerReport(failed={number}, chunk_sizes={number: 8}, outcomes={7: TransferOutcome(num_bytes=1 + number)})
        )
        for number in range(2)
    ]
    for report in reports:
        report.report.done[7] += 1
    both = pickle.loads(pickle.dumps(reports[0].aggregate(reports[1]))).report
    assert (both.done, both.failed, both.chunk_sizes) == ({7: 2}, {0, 1}, {0: 8, 1: 8})
    assert both.outcomes == {7: TransferOutcome(num_bytes=3)}


@pytest.mark.parametrize("role", KVConnectorRole)
def test_wrong_setting_or_engine_is_refused_in_both_roles(role: KVConnectorRole) -> None:
    config = config_of("unix:/none", "refused")
    config.kv_transfer_config.kv_connector_extra_config["kvdepot.adress"] = "x"
    with pytest.raises(ConfigError, match=r"kv_connector_extra_config: kvdepot\.adress is not a setting"):
        KvdepotConnector(config, role, CACHES)
    config = config_of("unix:/none", "refused", parallel_config__decode_context_parallel_size=2)
    with pytest.raises(Unsupported, match="decode_context_parallel_size"):
        KvdepotConnector(config, role, CACHES)


def test_cache_needs_no_delivery_and_counts_as_the_hosts(start: Start) -> None:
    engine = start("facts")
    assert not engine.scheduler.requires_kv_delivery
    assert engine.scheduler._cache_hit_source == "host"
    assert not engine.worker.has_pending_push_work()
