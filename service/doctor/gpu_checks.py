"""Checks of the GPU: devices, driver, CuPy and compiler, and that they fit together."""

from __future__ import annotations

from service.doctor.facts import Facts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.settings import Settings

NO_GPU = "no GPU is seen"


def gpu(facts: Facts, settings: Settings) -> Finding:
    """Check whether the process sees the node's GPUs."""
    machine = facts.gpu
    if machine.cuda.devices:
        return ok("; ".join(machine.cuda.devices))
    if not machine.driver and not machine.num_nodes:
        return not_applicable("no NVIDIA driver on this node: for engines with buffers in the host's memory only")
    if machine.hidden_by:
        return warning(f"the GPUs are hidden by {machine.hidden_by}", f"unset {machine.hidden_by}, or set all")
    if not machine.num_nodes:
        return warning(
            f"the node has a driver ({machine.driver}), but this process has no device",
            "runtimeClassName: nvidia and NVIDIA_VISIBLE_DEVICES=all, a device plugin's resource, or docker --gpus all",
        )
    return failure(
        f"there are {machine.num_nodes} devices, but none can be used: {machine.cuda.devices_error}",
        "see the findings for CuPy and the driver below; nvidia-smi shows whether the driver itself works",
    )


def cupy(facts: Facts, settings: Settings) -> Finding:
    """Check whether CuPy is installed on a node with a GPU."""
    cuda = facts.gpu.cuda
    if cuda.cupy_version:
        return ok(f"{cuda.cupy_version} for CUDA {_version(cuda.runtime_version)}")
    if not facts.gpu.num_nodes:
        return not_applicable(NO_GPU)
    return failure(
        f"it can't be imported: {cuda.cupy_error}", "pip install '.[server,cuda12]', or cuda13 for a driver of CUDA 13"
    )


def driver(facts: Facts, settings: Settings) -> Finding:
    """Check whether the driver is new enough for CuPy's CUDA."""
    cuda = facts.gpu.cuda
    if not facts.gpu.num_nodes or not cuda.cupy_version:
        return not_applicable(NO_GPU if not facts.gpu.num_nodes else "CuPy is missing")
    if not cuda.driver_version:
        return failure(
            "libcuda is missing", "the container runtime adds it: NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        )
    versions = f"it supports CUDA {_version(cuda.driver_version)}, and CuPy is for {_version(cuda.runtime_version)}"
    if cuda.driver_version // 1000 < cuda.runtime_version // 1000:
        return failure(versions, "install CuPy for the driver's CUDA (cuda12, cuda13), or a newer driver")
    return ok(versions)


def compiler(facts: Facts, settings: Settings) -> Finding:
    """Check whether the kernels can be compiled."""
    cuda = facts.gpu.cuda
    if not facts.gpu.num_nodes or not cuda.cupy_version:
        return not_applicable(NO_GPU if not facts.gpu.num_nodes else "CuPy is missing")
    if not cuda.nvrtc_version:
        return failure(
            f"the compiler of the kernels is missing: {cuda.nvrtc_error}",
            "pip install 'cupy-cuda12x[ctk]' (cuda13x), or an image with the CUDA runtime libraries",
        )
    return ok(cuda.nvrtc_version)


def compiled_kernels(facts: Facts, settings: Settings) -> Finding:
    """Check whether CuPy can save the kernels that it compiles."""
    machine = facts.gpu
    if not machine.cuda.devices:
        return not_applicable(NO_GPU)
    if machine.cache_is_writable:
        return ok(machine.cache_folder)
    return failure(
        f"CuPy can't write to {machine.cache_folder}, its cache of compiled kernels",
        "set CUPY_CACHE_DIR to a folder that this user may write to, such as an emptyDir",
    )


def cuda_handles(facts: Facts, settings: Settings) -> Finding:
    """Check whether the settings let engines on GPUs attach."""
    if not facts.gpu.cuda.devices:
        return not_applicable(NO_GPU)
    if any(address.startswith("unix:") for address in settings.listen):
        return ok("accepted over the unix socket")
    if settings.tls_client_ca:
        return ok("accepted from clients with a certificate")
    if settings.cuda_over_tcp:
        return ok("accepted from every client over TCP")
    return warning(
        "refused from all clients: engines on GPUs can't attach their memory",
        "also listen on a unix socket (listen: unix:/run/kvdepot/kvdepot.sock), or set tls_client_ca",
    )


def _version(number: int) -> str:
    """Return a version of CUDA as text: 12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"
