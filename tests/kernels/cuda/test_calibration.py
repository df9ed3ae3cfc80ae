"""Calibration: the arithmetic, and that measuring leaves nothing behind."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kernels.address_plan import plan_groups
from kernels.cuda import backend, calibration
from kernels.cuda.buffer import spawn_thread
from kernels.cuda.calibration import Timing, largest, predicted_seconds, quicker_route, time_routes
from kernels.cuda.runtime import CudaDevice
from kernels.cuda.settings import CudaSettings, RouteName
from kernels.errors import BackendUnavailable
from tests.kernels.cuda.depot import CHUNK_SIZE, LAYOUT, SECONDS, CudaDepot
from tests.kernels.reference import Engine, Shape

MIB = 1 << 20


def line(latency_seconds: float, bytes_per_second: float) -> tuple[Timing, Timing]:
    small, large = (Timing(size, latency_seconds + size / bytes_per_second) for size in (MIB, 16 * MIB))
    return small, large


def test_a_prediction_is_on_the_line_through_both_timings() -> None:
    small, large = line(20e-6, 50e9)
    for num_bytes in (MIB, 5 * MIB, 16 * MIB, 1 << 30):
        assert predicted_seconds(small, large, num_bytes) == pytest.approx(20e-6 + num_bytes / 50e9)


def test_a_disturbed_timing_never_predicts_less_for_more() -> None:
    small, large = Timing(MIB, 9.0), Timing(16 * MIB, 1.0)
    assert predicted_seconds(small, large, 1) == predicted_seconds(small, large, 1 << 40) == 9.0
    assert predicted_seconds(Timing(MIB, 0.0), Timing(2 * MIB, 9.0), 0) == 0.0


@pytest.mark.parametrize(
    ("num_bytes", "route"), [(64 << 10, RouteName.ZERO_COPY), (1 << 30, RouteName.STAGED)], ids=["small", "large"]
)
def test_latency_decides_small_requests_and_the_link_large_ones(num_bytes: int, route: RouteName) -> None:
    timings = {RouteName.STAGED: line(60e-6, 50e9), RouteName.ZERO_COPY: line(15e-6, 40e9)}
    assert quicker_route(timings, num_bytes) is route


@pytest.mark.parametrize(("share", "route"), [(0.95, RouteName.STAGED), (0.85, RouteName.ZERO_COPY)])
def test_zero_copy_must_win_clearly(share: float, route: RouteName) -> None:
    timings = {RouteName.STAGED: line(0.0, 1e9), RouteName.ZERO_COPY: line(0.0, 1e9 / share)}
    assert quicker_route(timings, MIB) is route


def test_the_plan_with_most_of_a_chunk_counts() -> None:
    few, many = plan_groups([*Engine(("LBHNC", Shape(num_layers=1))).groups, *Engine(LAYOUT).groups], CHUNK_SIZE)
    assert largest([few, many]) is largest([many, few]) is many


def test_both_routes_are_measured_on_memory_that_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.cuda.calibration._CHUNK_BYTES", 256)
    depot = CudaDepot()
    engine = Engine(("LBHNC", Shape()), LAYOUT)
    plan = largest(depot.attach(engine).plans)
    before, l1, left = engine.contents(), bytearray(depot.l1), depot.fake.left_over()
    depot.fake.calls.clear()
    timings = time_routes(depot.fake, depot.fake, plan, CudaSettings(staging_bytes=1_000), spawn_thread)
    assert timings.keys() == set(RouteName)
    for small, large in timings.values():
        assert 0 < small.num_bytes < large.num_bytes
        assert min(small.seconds, large.seconds) > 0
    assert {"gather", "scatter", "copy_to_host", "copy_to_device"} < set(depot.fake.calls)
    assert (engine.contents(), depot.l1, depot.fake.left_over()) == (before, l1, left)
    assert depot.fake.faults == []
    depot.backend.close()


def test_a_size_of_runs_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def time_nothing(_runtime: object, _device: object, plan: object, *_: object) -> object:
        measured.append(plan)
        return {RouteName.STAGED: line(60e-6, 50e9), RouteName.ZERO_COPY: line(15e-6, 40e9)}

    monkeypatch.setattr(backend, "time_routes", time_nothing)
    depot = CudaDepot(route=None, typical_tokens=CHUNK_SIZE)
    engine, other = Engine(LAYOUT), Engine(("LBHNC", Shape()))
    assert depot.attach(engine).transfer_backend == "cuda-zero-copy"
    depot.attach(engine)
    assert len(measured) == 1
    depot.attach(other)
    assert len(measured) == 2
    depot.backend.close()


def test_the_size_of_requests_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = {RouteName.STAGED: line(60e-6, 50e9), RouteName.ZERO_COPY: line(15e-6, 40e9)}
    monkeypatch.setattr(backend, "time_routes", lambda *_: timings)
    engine = Engine(LAYOUT)
    token_bytes = engine.groups[0].token_bytes
    for typical_bytes in (64 << 10, 1 << 30):
        depot = CudaDepot(route=None, typical_tokens=typical_bytes // token_bytes)
        assert depot.attach(engine).transfer_backend == quicker_route(timings, typical_bytes)
        depot.backend.close()


def test_all_groups_of_a_request_count(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = {RouteName.STAGED: line(60e-6, 50e9), RouteName.ZERO_COPY: line(15e-6, 40e9)}
    monkeypatch.setattr(backend, "time_routes", lambda *_: timings)
    engine = Engine(LAYOUT, LAYOUT)
    one, both = 4_000_000, 8_000_000
    assert quicker_route(timings, one) != quicker_route(timings, both)
    depot = CudaDepot(route=None, typical_tokens=one // engine.groups[0].token_bytes)
    assert depot.attach(engine).transfer_backend == quicker_route(timings, both)
    depot.backend.close()


class Measured:
    """Stands for measuring, which it takes its time for, and counts."""

    def __init__(self) -> None:
        self.uuids: list[str] = []

    def __call__(self, _runtime: object, device: CudaDevice, *_: object) -> object:
        self.uuids.append(device.uuid)
        threading.Event().wait(0.05)  # long enough for another attach to get here
        return {RouteName.STAGED: line(60e-6, 50e9), RouteName.ZERO_COPY: line(15e-6, 40e9)}


def test_engines_that_attach_at_once_measure_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, both = Measured(), threading.Barrier(2)
    monkeypatch.setattr(backend, "time_routes", measured)
    depot = CudaDepot(has_threads=True, route=None)

    def attach(_: int) -> None:
        both.wait(SECONDS)
        depot.attach(Engine(LAYOUT))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(attach, range(2)))
    assert len(measured.uuids) == 1
    depot.backend.close()


def test_each_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured()
    monkeypatch.setattr(backend, "time_routes", measured)
    depot = CudaDepot(route=None)
    depot.fake.add_device("ab")
    depot.attach(Engine(LAYOUT))
    depot.attach(Engine(LAYOUT), uuid="ab")
    assert measured.uuids == [depot.fake.uuid, "ab"]
    depot.backend.close()


def test_an_engine_that_dies_while_it_is_measured_for_holds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, held = Measured(), []

    def measure(*arguments: Any) -> object:
        held.append(depot.fake.calls.count("open_memory"))
        return measured(*arguments)

    monkeypatch.setattr(backend, "time_routes", measure)
    depot = CudaDepot(route=None)
    depot.attach(Engine(LAYOUT))
    assert held == [0]
    depot.backend.close()


def test_the_quickest_round_after_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = itertools.cycle([1.0, 5.0, 4.0, 3.0])
    monkeypatch.setattr(calibration, "_CHUNK_BYTES", 256)
    monkeypatch.setattr(calibration, "_time_round", lambda *_: next(rounds))
    depot = CudaDepot()
    (plan,) = depot.attach(Engine(LAYOUT)).plans
    timings = time_routes(depot.fake, depot.fake, plan, CudaSettings(staging_bytes=1_000), spawn_thread)
    assert {timing.seconds for both in timings.values() for timing in both} == {3.0}
    depot.backend.close()


def test_a_device_that_moves_nothing_refuses_the_attachment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_CHUNK_BYTES", 256)
    monkeypatch.setattr(calibration, "_TIMEOUT_SECONDS", 0.0)
    depot = CudaDepot(route=None)
    with pytest.raises(BackendUnavailable, match="has not moved"):
        depot.attach(Engine(LAYOUT))
    depot.backend.close()
    assert depot.fake.left_over() == []
