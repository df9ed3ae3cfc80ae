"""The layer under torch: tensors on "cuda" are the card's memory, late work is late, other processes stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.gpu.simulated.card import simulated_card

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="could not import 'torch'")


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    with simulated_card() as variables:
        yield variables


def run(variables: dict[str, str], program: str) -> str:
    """Return the output of a program that runs with the card."""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TENSORS = """
import ctypes, torch
made, moved = torch.randn(4, 6, device="cuda"), torch.arange(24.).view(4, 6).to("cuda:0")
on_card = [made, moved, made.t(), made + 1, torch.cat([made, moved]), made.new_zeros(3), made.max(dim=1).values,
           torch.empty_like(made), moved.to(torch.bfloat16), torch.zeros(2, device=made.device)]
assert all(each.device == torch.device("cuda", 0) and each.is_cuda for each in on_card)
on_host = [made.cpu(), made.to("cpu"), torch.zeros(3), torch.zeros_like(made, device="cpu")]
assert all(each.device.type == "cpu" and not each.is_cuda for each in on_host)
assert torch.equal(moved.cpu(), torch.arange(24.).view(4, 6)) and moved.cpu().numpy().sum() == 276
for refused in (lambda: made.numpy(), lambda: made.pin_memory()):
    try:
        refused()
    except (TypeError, RuntimeError):
        continue
    raise AssertionError("it was not refused")
start, size = ctypes.c_uint64(), ctypes.c_size_t()
driver = ctypes.CDLL("libcuda.so.1")
for tensor in (made, moved):
    address = ctypes.c_uint64(tensor.data_ptr())
    assert driver.cuMemGetAddressRange_v2(ctypes.byref(start), ctypes.byref(size), address) == 0
    assert start.value <= made.data_ptr() < start.value + size.value == start.value + (2 << 20)
free = torch.cuda.mem_get_info()[0]
large = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
assert torch.cuda.mem_get_info()[0] == free - (1 << 30)
del large
torch.cuda.empty_cache()
assert torch.cuda.mem_get_info()[0] == free
"""

LATE = """
import ctypes, time, torch
target, source = torch.zeros(3, 4, device="cuda"), torch.ones(2, 4, device="cuda")
index = torch.tensor([2, 0]).to("cuda")
seen = (ctypes.c_float * 12).from_address(target.data_ptr())
begin = time.monotonic()
torch.cuda._sleep(int(0.3 * 1.5e9))
target[index] = source + 1
event = torch.cuda.Event(interprocess=True)
event.record()
assert not event.query() and time.monotonic() < begin + 0.2
assert not any(seen)
assert target.sum().item() == 16 and time.monotonic() >= begin + 0.3
for copy in (lambda: torch.ones(2).to("cuda"), lambda: torch.ones(2).cuda(), lambda: target[0].copy_(torch.ones(4))):
    begin = time.monotonic()
    torch.cuda._sleep(int(0.1 * 1.5e9))
    copy()
    assert time.monotonic() >= begin + 0.1, "a copy from ordinary memory waits for what comes before it"
begin = time.monotonic()
torch.cuda._sleep(int(0.3 * 1.5e9))
torch.ones(2).pin_memory().to("cuda", non_blocking=True)
assert time.monotonic() < begin + 0.2
torch.cuda.synchronize()
try:
    torch.cuda._sleep(int(0.1 * 1.5e9)); target.copy_(torch.zeros(5, 5, device="cuda"))
except RuntimeError:
    print("refused at once")
"""


@needs_torch
def test_tensors_lie_in_the_cards_memory(variables: dict[str, str]) -> None:
    run(variables, TENSORS)


@needs_torch
def test_work_behind_other_work_is_late(variables: dict[str, str]) -> None:
    assert run(variables, LATE) == "refused at once\n"


def test_torch_is_not_imported_for_a_process_that_does_not(variables: dict[str, str]) -> None:
    assert run(variables, "import sys; print({'torch', 'simulated_torch', 'cupy'} & set(sys.modules))") == "set()\n"


def test_another_sitecustomize_runs_too(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the other one')")
    path = os.pathsep.join([variables["PYTHONPATH"], str(tmp_path)])
    assert run({**variables, "PYTHONPATH": path}, "") == "the other one\n"
