"""The steps run all GPU tests and benchmarks."""

from __future__ import annotations

from benchmarks.gpu.__main__ import MEASUREMENTS
from tools.gpu_session.child import REPOSITORY
from tools.gpu_session.steps import STEPS, Kind


def test_every_measurement_is_in_one_step() -> None:
    measured = [name for step in STEPS if step.kind is Kind.FIGURES for name in step.arguments[2:]]
    assert sorted(measured) == sorted(MEASUREMENTS)


def test_every_test_of_the_gpu_is_in_a_step() -> None:
    named = [argument for step in STEPS for argument in step.arguments if argument.startswith("tests/")]
    assert all((REPOSITORY / name).exists() for name in named)
    kernels = {f"tests/kernels/cuda/test_block_{name}.py" for name in ("transfer", "sums")}
    assert {"tests/gpu", "tests/gpu/test_service.py", *kernels} <= set(named)


def test_correctness_comes_before_speed() -> None:
    kinds = [step.kind for step in STEPS if step.name != "racecheck"]
    assert kinds == sorted(kinds, key=[Kind.FACTS, Kind.TESTS, Kind.FIGURES].index)


def test_the_page_lists_the_steps_with_their_limits() -> None:
    page = (REPOSITORY / "docs" / "gpu.md").read_text()
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| `")]
    listed = [(name.strip("| `"), float(limit)) for name, limit in rows if limit.isdigit()]
    assert listed == [(step.name, step.limit_seconds) for step in STEPS]
