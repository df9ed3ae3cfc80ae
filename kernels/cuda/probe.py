"""A probe of CUDA on this machine: the versions and devices, and what is missing. Nothing here raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaProbe:
    """What this machine has for CUDA. Versions are as in CUDA's API: 12090 is 12.9, 0 is none.

    An `…_error` says why something is missing. It may be empty.
    """

    cupy_version: str = ""
    cupy_error: str = ""
    runtime_version: int = 0
    driver_version: int = 0
    devices: tuple[str, ...] = ()
    devices_error: str = ""
    nvrtc_version: str = ""
    nvrtc_error: str = ""


def probe_cuda() -> CudaProbe:
    """Ask CuPy, which asks the driver. No device is used.

    Each question is asked on its own, because an incomplete CuPy raises any error, also AttributeError.
    """
    try:
        import cupy

        version, runtime = str(cupy.__version__), cupy.cuda.runtime
    except Exception as error:
        return CudaProbe(cupy_error=str(error), devices_error="CuPy is missing", nvrtc_error="CuPy is missing")
    devices, devices_error = _devices(runtime)
    nvrtc_version, nvrtc_error = _nvrtc()
    return CudaProbe(
        cupy_version=version,
        runtime_version=_version(runtime, "runtimeGetVersion"),
        driver_version=_version(runtime, "driverGetVersion"),
        devices=devices,
        devices_error=devices_error,
        nvrtc_version=nvrtc_version,
        nvrtc_error=nvrtc_error,
    )


def _version(runtime: Any, name: str) -> int:
    try:
        return int(getattr(runtime, name)())
    except Exception:
        return 0


def _devices(runtime: Any) -> tuple[tuple[str, ...], str]:
    try:
        found = [runtime.getDeviceProperties(ordinal) for ordinal in range(runtime.getDeviceCount())]
    except Exception as error:
        return (), str(error)
    names = tuple(
        f"{each['name'].decode(errors='replace')} (compute capability {each['major']}.{each['minor']})"
        for each in found
    )
    return names, "" if names else "the driver shows none"


def _nvrtc() -> tuple[str, str]:
    """Return NVRTC's version and error. Its library is loaded at the first call."""
    try:
        from cupy_backends.cuda.libs import nvrtc

        major, minor = nvrtc.getVersion()
    except Exception as error:
        return "", str(error)
    return f"{major}.{minor}", ""
