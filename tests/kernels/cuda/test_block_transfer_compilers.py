"""The CUDA kernels as NVIDIA's compilers see them: accepted everywhere, without spills, in wide accesses."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from kernels.cuda import kernel as cuda_kernel

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
KERNELS = ("gather_blocks", "scatter_blocks")

# What CuPy adds to our options.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


@functools.cache
def compile_with_nvrtc(architecture: str) -> tuple[bytes, str]:
    """Return the binary and the log, with ptxas' report."""
    pytest.importorskip("cupy")
    from cupy_backends.cuda.libs import nvrtc

    try:
        nvrtc.getVersion()
    except RuntimeError as error:
        pytest.skip(f"there is no NVRTC: {error}")
    program = nvrtc.createProgram(cuda_kernel.source(), "kernels.cu", (), ())
    try:
        options = (*cuda_kernel.COMPILE_OPTIONS, *CUPY_OPTIONS, "--ptxas-options=-v", f"-arch={architecture}")
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        # CuPy cuts off the last byte, which is a zero.
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def check_report(report: str) -> None:
    assert re.findall(r"Compiling entry function '(\w+)'", report) in (list(KERNELS), list(reversed(KERNELS)))
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert memory == [("0", "0", "0")] * len(KERNELS)
    assert "warning" not in report


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_the_kernels_without_spills(architecture: str) -> None:
    _, report = compile_with_nvrtc(architecture)
    check_report(report)


@pytest.mark.parametrize("architecture", ["sm_90", "sm_120"])
def test_nvcc_compiles_the_kernels_without_spills(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    text = tmp_path / "block_transfer.cu"
    text.write_text(cuda_kernel.source())
    arguments = f"-std=c++17 -arch={architecture} -cubin -Xptxas=-v -o {tmp_path}/cubin {text}"
    done = subprocess.run([nvcc, *arguments.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_report(done.stderr)


def disassembler() -> str:
    found = shutil.which("nvdisasm") or shutil.which(Path(sysconfig.get_path("purelib"), "nvidia/cu13/bin/nvdisasm"))
    if found is None:
        pytest.skip("there is no nvdisasm")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_streaming_loads_of_128_bits_come_before_the_stores(architecture: str, tmp_path: Path) -> None:
    nvdisasm = disassembler()
    cubin = tmp_path / "cubin"
    cubin.write_bytes(compile_with_nvrtc(architecture)[0])
    sass = subprocess.run([nvdisasm, cubin], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"\.section\s+\.text\.(\w+)", sass)) == set(KERNELS)
    for kernel in re.split(r"\.section\s+\.text\.", sass)[1:]:
        wide = re.findall(r"\b(LDG|STG)\.E\.EF\.128\b", kernel)
        assert wide == ["LDG"] * 4 + ["STG"] * 4
        assert not re.findall(r"\b(?:LDL|STL)\b", kernel)  # local memory
