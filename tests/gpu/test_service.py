"""The whole service on a GPU: engines share prompts through a real depot over CUDA IPC and get killed."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from kernels.cuda.cupy_runtime import CupyRuntime
from kvdepot.cli.processes import Child, ChildFailed, child
from tests.fakes.waiting import wait_until
from tests.gpu.service_engine_process import EngineError, ServiceEngine
from tests.gpu.service_kv import BUFFER_BYTES, CHUNK_SIZE, IS_SIMULATED, PROMPT_TOKENS

if TYPE_CHECKING:
    from tests.gpu.service_depot import ServiceDepot  # which needs the server's packages

pytestmark = pytest.mark.gpu

SECONDS = 60.0
LIMIT_SECONDS = 1.0
"""How long a depot may hold what a killed engine had."""

DRAIN_SECONDS = 5.0
FLAGS = ("--chunk-size", str(CHUNK_SIZE), "--lease-ttl", "10m", "--drain-timeout", f"{DRAIN_SECONDS:g}s")
LARGE = (*FLAGS, "--l1-size", "256MiB" if IS_SIMULATED else "4GiB")
SMALL = (*FLAGS, "--l1-size", "128MiB" if IS_SIMULATED else "2GiB")
TRACED = (*SMALL, "--enable-tracing", "--trace-console")
LAST_STORES = 4
"""Prompts that L1 still has for sure while the next one is stored."""

DELAYS_SECONDS = (0.0, 0.001, 0.002, 0.003, 0.004)
"""From a transfer that is seen to the end of its engine."""


@pytest.fixture(scope="module")
def packages(runtime: CupyRuntime) -> None:
    """Return the packages that the server imports."""
    try:
        importlib.import_module("service.commands")
    except ImportError as error:
        pytest.skip(f"the server's packages are missing (make gpu-wheels): {error}")


# All processes are started before the first one is waited for: torch takes its time.


@pytest.fixture(scope="module")
def engines(packages: None) -> Iterator[list[ServiceEngine]]:
    """Engines that are not attached: a witness, a spare one, and the victims."""
    started = [ServiceEngine() for _ in range(2 + len(DELAYS_SECONDS))]
    yield started
    for engine in started:
        engine.close()


@pytest.fixture(scope="module")
def expandable(packages: None) -> Iterator[ServiceEngine]:
    """An engine with expandable segments: torch maps its memory piece by piece."""
    engine = ServiceEngine(PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def depots(engines: list[ServiceEngine], expandable: ServiceEngine) -> Iterator[dict[str, ServiceDepot]]:
    """One that tests share, one that writes its spans to its log, and one that a test may end."""
    from tests.gpu.service_depot import ServiceDepot

    started = {
        "shared": ServiceDepot(*LARGE),
        "traced": ServiceDepot(*TRACED),
        "doomed": ServiceDepot(*SMALL),
    }
    yield started
    for depot in started.values():
        depot.close()


@pytest.fixture(scope="module")
def witness(depots: dict[str, ServiceDepot], engines: list[ServiceEngine]) -> ServiceEngine:
    """An engine that is attached all the time, and has leased a prompt of its own."""
    engine, depot = engines[0], depots["shared"]
    assert depot.in_use == (0, 0, 0, 0)
    # From here on no depot takes more of the GPU's memory but for its attachments.
    wait_until(lambda: all(each.is_populated for each in depots.values()), within_seconds=SECONDS)
    engine.ask("attach", address=depot.address, instance_id="witness")
    assert engine.ask("store", seed=1) == PROMPT_TOKENS
    engine.ask("lease", seed=1)
    return engine


@pytest.fixture
def depot(depots: dict[str, ServiceDepot], witness: ServiceEngine) -> Iterator[ServiceDepot]:
    """The depot that tests share. After each test its content is as before, and the witness finds its own bytes."""
    shared = depots["shared"]
    before = shared.in_use
    yield shared
    wait_until(lambda: shared.in_use == before, within_seconds=LIMIT_SECONDS)
    witness.ask("finds_leased")


@pytest.fixture
def spare(engines: list[ServiceEngine]) -> Iterator[ServiceEngine]:
    """An engine that a test may attach; it is detached when the test ends."""
    yield engines[1]
    engines[1].ask("detach")


def free_bytes() -> int:
    """Return the free bytes of the GPU."""
    import cupy

    return int(cupy.cuda.runtime.memGetInfo()[0])


# Engines that share a prompt


@contextmanager
def demo_engine(depot: ServiceDepot, name: str) -> Iterator[tuple[Child, Callable[[str], dict[str, Any]]]]:
    """An engine of the demo on the GPU, and a function that waits for its line about an event."""
    arguments = ("-m", "examples.demo", "--address", depot.address, "--engine", name, "--stay")
    choices = ("--decoder", "transformers", "--device", "cuda", "--size", "small" if IS_SIMULATED else "full")
    variables = {"HF_HUB_OFFLINE": "1"}
    with child(f"engine {name}", *arguments, *choices, variables=variables) as process, process.limit(SECONDS):
        events = (json.loads(line) for line in process.lines() if line.startswith("{"))
        yield process, lambda event: next(each for each in events if each["event"] == event)


@pytest.mark.skipif(find_spec("transformers") is None, reason="the demo needs transformers")
def test_an_engine_answers_with_the_kv_of_one_that_was_killed_as_it_does_without(depot: ServiceDepot) -> None:
    free = free_bytes()
    with demo_engine(depot, "a") as (process, said):
        stored = said("answered")
        rank = depot.rank("engine-a")
        assert rank is not None
        assert rank.transfer_backend == "cuda"
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ChildFailed):
            said("the end")  # the process is gone then, which takes a driver its time
        wait_until(lambda: depot.rank("engine-a") is None, within_seconds=LIMIT_SECONDS)
        wait_until(lambda: free_bytes() > free - rank.mapped_bytes // 2, within_seconds=LIMIT_SECONDS)
    with demo_engine(depot, "b") as (_, said):
        found = said("answered")
        assert 0 < found["matched_tokens"] == stored["stored_tokens"]
        assert 0 < found["retrieved_bytes"] == stored["stored_bytes"]
        assert said("compared")["identical"]


# What a transfer's time went into


def test_the_gpu_measures_the_phases_of_each_transfer(depots: dict[str, ServiceDepot], spare: ServiceEngine) -> None:
    depot, backend = depots["traced"], "cuda"
    steps = {"store": {"gather", "copy"}, "retrieve": {"copy", "scatter"}}
    assert depot.in_use == (0, 0, 0, 0)
    spare.ask("attach", address=depot.address, instance_id="spare")
    spare.ask("store", seed=2)
    assert spare.ask("finds", seed=2) == PROMPT_TOKENS

    whole, parts = "kvdepot_transfer_duration_seconds", "kvdepot_transfer_step_duration_seconds"
    ended = {"backend": backend, "outcome": "ok"}
    wait_until(
        lambda: depot.metrics.value(f"{whole}_count", direction="retrieve", **ended) == 1, within_seconds=SECONDS
    )
    page = depot.metrics
    for direction, names in steps.items():
        took = page.sum(f"{whole}_sum", direction=direction, **ended)
        step_seconds = {
            step: page.value(f"{parts}_sum", direction=direction, backend=backend, step=step)
            for step in page.labels(f"{parts}_sum", "step")
        }
        measured = {step: seconds for step, seconds in step_seconds.items() if seconds is not None}
        assert measured.keys() == {"wait", *names}
        assert all(0 < measured[step] <= took for step in names)

    wait_until(lambda: len(transfers_in(depot.spans, "retrieve")) == 1, within_seconds=SECONDS)
    for direction, names in steps.items():
        (transfer,) = transfers_in(depot.spans, direction)
        found = [span for span in depot.spans if span["parent_id"] == transfer["context"]["span_id"]]
        assert {span["name"] for span in found} == {"wait", *names}
        begin, end = times(transfer)
        for first, last in map(times, found):
            assert begin - 1e-5 <= first <= last <= end + 1e-5


def transfers_in(spans: list[dict[str, Any]], operation: str) -> list[dict[str, Any]]:
    """Return the transfers of operations of a name."""
    above = {span["context"]["span_id"] for span in spans if span["name"] == operation}
    return [span for span in spans if span["name"] == "transfer" and span["parent_id"] in above]


def times(span: dict[str, Any]) -> tuple[float, float]:
    """Return the begin and the end of a span, in seconds."""
    begin, end = (datetime.fromisoformat(span[name]).timestamp() for name in ("start_time", "end_time"))
    return begin, end


def test_a_store_copies_what_comes_before_its_event(depot: ServiceDepot, spare: ServiceEngine) -> None:
    spare.ask("attach", address=depot.address, instance_id="spare")
    assert spare.ask("store_late", seed=10, seconds=0.5) > 0.25
    assert spare.ask("finds", seed=10) == PROMPT_TOKENS


# Engines and depots that end


def test_engines_that_are_killed_while_their_blocks_move_leave_nothing_and_harm_no_other(
    depot: ServiceDepot, witness: ServiceEngine, spare: ServiceEngine, engines: list[ServiceEngine]
) -> None:
    from kvdepot.v1.cache_pb2 import OPERATION_KIND_RETRIEVE, OUTCOME_CANCELLED

    before, stored, cut = depot.in_use, list[int](), set()
    for number, (victim, delay_seconds) in enumerate(zip(engines[2:], DELAYS_SECONDS, strict=True)):
        free = free_bytes()
        attach_again(depot, victim, stored)
        victim.order(("store_on_and_on", "retrieve_on_and_on")[number % 2], first_seed=100 * (number + 1))
        wait_until_blocks_move(depot, victim)
        witness.order("finds_leased")
        time.sleep(delay_seconds)
        victim.kill()
        wait_until_all_is_given_back(depot, before, free)
        witness.answer()
        stored = victim.stored[-LAST_STORES:]
        operations = depot.client.get_session("victim", "session").session.operations
        cut |= {operation.kind for operation in operations if operation.outcome == OUTCOME_CANCELLED}
    attach_again(depot, spare, stored)
    # Stores are often done before the depot learns of the engine's death: Linux closes its connection late.
    assert OPERATION_KIND_RETRIEVE in cut, "no engine was killed in the middle of a transfer"


def attach_again(depot: ServiceDepot, engine: ServiceEngine, stored: list[int]) -> None:
    """Attach a successor of the killed engine; it finds the prompts that the killed one stored."""
    engine.ask("attach", address=depot.address, instance_id="victim")
    for seed in stored:
        assert engine.ask("finds", seed=seed) == PROMPT_TOKENS


def wait_until_blocks_move(depot: ServiceDepot, victim: ServiceEngine) -> None:
    """Wait for the middle of a burst of transfers."""
    wait_until(lambda: depot.num_transfers("victim") > 1, within_seconds=SECONDS)


def wait_until_all_is_given_back(depot: ServiceDepot, before: tuple[int, int, int, int], free: int) -> None:
    """Wait until the depot's content is as before the victim came, and the GPU has the victim's memory again."""
    wait_until(lambda: depot.in_use == before and free_bytes() > free - BUFFER_BYTES // 2, within_seconds=LIMIT_SECONDS)


def test_a_depot_that_is_stopped_while_blocks_move_ends_well_and_says_so(
    depots: dict[str, ServiceDepot], spare: ServiceEngine
) -> None:
    depot = depots["doomed"]
    assert depot.in_use == (0, 0, 0, 0)
    spare.ask("attach", address=depot.address, instance_id="victim")
    spare.order("store_on_and_on", first_seed=1)
    wait_until_blocks_move(depot, spare)
    depot.terminate()
    depot.wait_ended(DRAIN_SECONDS + 5)
    with pytest.raises(EngineError) as ended:
        spare.answer()
    assert ended.value.name == "DepotError"
    assert ended.value.reason in ("DRAINING", "DETACHED", "UNREACHABLE")  # the last, if it called after the end


# What is refused


def test_memory_of_expandable_segments_is_refused_by_the_name_of_the_setting(
    depot: ServiceDepot, expandable: ServiceEngine
) -> None:
    with pytest.raises(EngineError, match="expandable_segments:False") as refused:
        expandable.ask("attach", address=depot.address, instance_id="expandable")
    assert refused.value.name == "NotShareable"


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"handle": random.Random(5).randbytes(64)}, "REGION_UNAVAILABLE"),
        ({"device_uuid": "GPU-00000000-0000-4000-8000-000000000000"}, "BACKEND_UNAVAILABLE"),
        ({"offset_bytes": 1 << 40}, "REGION_UNAVAILABLE"),
        ({"size_bytes": 1 << 40}, "REGION_UNAVAILABLE"),
    ],
    ids=["forged", "another-device", "beyond", "too-large"],
)
def test_regions_that_are_not_what_is_said_are_refused(
    depot: ServiceDepot, spare: ServiceEngine, lie: dict[str, Any], reason: str
) -> None:
    from kvdepot import DepotError
    from kvdepot.v1.cache_pb2 import KvGroup, MemoryRegion

    said = spare.ask("describe")
    group = KvGroup.FromString(bytes.fromhex(said["group"]))
    regions = [MemoryRegion.FromString(bytes.fromhex(region)) for region in said["regions"]]
    for name, value in lie.items():
        for region in regions if name == "device_uuid" else regions[-1:]:
            setattr(region if name == "size_bytes" else region.cuda_ipc, name, value)
    with pytest.raises(DepotError) as refused:
        depot.client.attach(instance_id="liar", model_name="model", groups=[group], regions=regions).close()
    assert refused.value.reason == reason


def test_doctor_finds_nothing_wrong_with_cuda(packages: None) -> None:
    arguments = ("-m", "kvdepot", "doctor", "--json", "--listen", "unix:/tmp/kvdepot-doctor.sock")
    lines: list[str] = []
    with child("doctor", *arguments) as process, process.limit(SECONDS), suppress(ChildFailed):
        lines.extend(process.lines())  # it fails if anything else is wrong with this machine
    findings = {each["check"]: each for each in json.loads("\n".join(lines))["findings"]}
    assert findings["GPU"]["status"] == findings["CuPy"]["status"] == findings["CUDA handles"]["status"] == "ok"
    bad = [findings[check] for check in ("GPU driver", "NVRTC", "kernel cache")]
    assert not [each for each in bad if each["status"] in ("warning", "failure")]
