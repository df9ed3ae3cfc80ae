"""The step that describes the machine: the card, the driver, the versions. An empty value means there is none."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path

from kernels.cuda.probe import probe_cuda

PACKAGES = ("torch", "cupy-cuda12x", "cupy-cuda13x", "numpy", "grpcio", "protobuf", "transformers", "pytest", "blake3")
PROGRAMS = ("compute-sanitizer", "ncu", "nvcc", "gcc", "g++", "git", "make")
CARD_QUERY = (
    "name,uuid,driver_version,memory.total,pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current,"
    "compute_mode,persistence_mode,mig.mode.current,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
)
CUDA_PROGRAMS = "/usr/local/cuda/bin"


def facts() -> dict[str, str]:
    """Return the facts by their names, with an empty value for a missing thing."""
    cuda = probe_cuda()
    return {
        "card": ", ".join(cuda.devices) or f"none: {cuda.devices_error}",
        **_card(),
        "CUDA driver API": str(cuda.driver_version),
        "CUDA runtime": str(cuda.runtime_version),
        "CuPy": cuda.cupy_version or cuda.cupy_error,
        "NVRTC": cuda.nvrtc_version or cuda.nvrtc_error,
        "Python": platform.python_version(),
        **{f"package {name}": _version(name) for name in PACKAGES},
        **{f"program {name}": which(name) or "" for name in PROGRAMS},
        "processor": f"{os.cpu_count()} × {_first('/proc/cpuinfo', 'model name')}",
        "memory": _first("/proc/meminfo", "MemTotal"),
        "memory available": _first("/proc/meminfo", "MemAvailable"),
        "memlock": _limit(resource.RLIMIT_MEMLOCK),
        "/dev/shm": f"{shutil.disk_usage('/dev/shm').free >> 20} MiB free",
        "transparent huge pages": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "kernel": platform.release(),
        "MPS": "running" if _is_running("nvidia-cuda-mps") else "not running",
        "commit": _output("git", "describe", "--always", "--dirty") or os.environ.get("COMMIT", ""),
    }


def which(program: str) -> str | None:
    """Return a program's path, from PATH or CUDA's folders."""
    return shutil.which(program) or shutil.which(program, path=CUDA_PROGRAMS)


def _card() -> dict[str, str]:
    values = _output("nvidia-smi", f"--query-gpu={CARD_QUERY}", "--format=csv,noheader")
    if not values:
        return {"nvidia-smi": "it does not answer"}
    first = [value.strip() for value in values.splitlines()[0].split(",")]
    return {f"card {name}": value for name, value in zip(CARD_QUERY.split(","), first, strict=False)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _first(path: str, name: str) -> str:
    """Return the first line of a file in /proc that begins with a name."""
    lines = _text(path).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _limit(which_limit: int) -> str:
    soft, _ = resource.getrlimit(which_limit)
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"


def _is_running(name: str) -> bool:
    return any(name in _text(str(path)) for path in Path("/proc").glob("[0-9]*/comm"))


def main() -> None:
    """Print the facts, a line each."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_session.machine", description=__doc__)
    parser.add_argument("--results", type=Path, help="also write them to this file, as a line of JSON")
    arguments = parser.parse_args()
    found = facts()
    for name, value in found.items():
        print(f"{name}: {value or 'none'}")
    if arguments.results is not None:
        arguments.results.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
