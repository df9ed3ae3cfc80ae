"""What there is of CUDA on this machine, for people who look for what is missing. Nothing here raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaPresence:
    """Versions of CUDA as its API tells them: 12090 is 12.9, 0: none. ``why_no_…`` is empty where there is one."""

    cupy_version: str = ""
    why_no_cupy: str = ""
    runtime_version: int = 0
    driver_version: int = 0
    devices: tuple[str, ...] = ()
    why_no_devices: str = ""
    nvrtc_version: str = ""
    why_no_nvrtc: str = ""


def cuda_presence() -> CudaPresence:
    """Asks CuPy, which asks the driver; a device is looked at and not used.

    Each question is asked on its own: a CuPy that is not whole raises anything, AttributeError too.
    """
    try:
        import cupy

        version, runtime = str(cupy.__version__), cupy.cuda.runtime
    except Exception as error:
        return CudaPresence(why_no_cupy=str(error), why_no_devices="CuPy is missing", why_no_nvrtc="CuPy is missing")
    devices, why_no_devices = _devices(runtime)
    nvrtc_version, why_no_nvrtc = _nvrtc()
    return CudaPresence(
        cupy_version=version,
        runtime_version=_version(runtime, "runtimeGetVersion"),
        driver_version=_version(runtime, "driverGetVersion"),
        devices=devices,
        why_no_devices=why_no_devices,
        nvrtc_version=nvrtc_version,
        why_no_nvrtc=why_no_nvrtc,
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
    """It is loaded when it is first called."""
    try:
        from cupy_backends.cuda.libs import nvrtc

        major, minor = nvrtc.getVersion()
    except Exception as error:
        return "", str(error)
    return f"{major}.{minor}", ""
