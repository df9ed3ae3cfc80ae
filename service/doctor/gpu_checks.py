"""The GPU: seen, with a driver, CuPy and a compiler that go together."""

from __future__ import annotations

from service.doctor.facts import Facts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.settings import Settings

NO_GPU = "no GPU is seen"


def gpu(facts: Facts, settings: Settings) -> Finding:
    """Whether the node's GPUs are seen."""
    check, machine = "GPU", facts.gpu
    if machine.cuda.devices:
        return ok(check, "; ".join(machine.cuda.devices))
    if not machine.driver and not machine.num_nodes:
        return not_applicable(
            check, "no NVIDIA driver on this node: for engines with buffers in the host's memory only"
        )
    if machine.hidden_by:
        return warning(check, f"the GPUs are hidden by {machine.hidden_by}", f"unset {machine.hidden_by}, or set all")
    if not machine.num_nodes:
        return warning(
            check,
            f"the node has a driver ({machine.driver}), and this process no device",
            "runtimeClassName: nvidia and NVIDIA_VISIBLE_DEVICES=all, a device plugin's resource, or docker --gpus all",
        )
    return failure(
        check,
        f"{machine.num_nodes} devices are there and none can be used: {machine.cuda.devices_error}",
        "see what CuPy and the driver say below; nvidia-smi tells whether the driver itself works",
    )


def cupy(facts: Facts, settings: Settings) -> Finding:
    """Whether CuPy is there where a GPU is."""
    check, machine = "CuPy", facts.gpu
    if machine.cuda.cupy_version:
        return ok(check, f"{machine.cuda.cupy_version} for CUDA {_version(machine.cuda.runtime_version)}")
    if not machine.num_nodes:
        return not_applicable(check, NO_GPU)
    return failure(
        check,
        f"it can't be imported: {machine.cuda.cupy_error}",
        "pip install '.[server,cuda12]', or cuda13 for a driver of CUDA 13",
    )


def driver(facts: Facts, settings: Settings) -> Finding:
    """Whether the driver is new enough for CuPy's CUDA."""
    check, cuda = "GPU driver", facts.gpu.cuda
    if not facts.gpu.num_nodes or not cuda.cupy_version:
        return not_applicable(check, NO_GPU if not facts.gpu.num_nodes else "CuPy is missing")
    if not cuda.driver_version:
        return failure(
            check,
            "libcuda is not there",
            "the container runtime puts it there: NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    versions = f"does CUDA {_version(cuda.driver_version)}, and CuPy is for {_version(cuda.runtime_version)}"
    if cuda.driver_version // 1000 < cuda.runtime_version // 1000:
        return failure(
            check, f"it {versions}", "install CuPy for the driver's CUDA (cuda12, cuda13), or a newer driver"
        )
    return ok(check, f"it {versions}")


def compiler(facts: Facts, settings: Settings) -> Finding:
    """Whether the kernels can be compiled."""
    check, cuda = "NVRTC", facts.gpu.cuda
    if not facts.gpu.num_nodes or not cuda.cupy_version:
        return not_applicable(check, NO_GPU if not facts.gpu.num_nodes else "CuPy is missing")
    if not cuda.nvrtc_version:
        return failure(
            check,
            f"the compiler of the kernels is missing: {cuda.nvrtc_error}",
            "pip install 'cupy-cuda12x[ctk]' (cuda13x), or an image with the CUDA runtime libraries",
        )
    return ok(check, cuda.nvrtc_version)


def compiled_kernels(facts: Facts, settings: Settings) -> Finding:
    """Whether CuPy can keep what it has compiled."""
    check, machine = "kernel cache", facts.gpu
    if not machine.cuda.devices:
        return not_applicable(check, NO_GPU)
    if machine.cache_is_writable:
        return ok(check, machine.cache_folder)
    return failure(
        check,
        f"CuPy can't write to {machine.cache_folder}, where it keeps the kernels that it has compiled",
        "set CUPY_CACHE_DIR to a folder that this user may write to, such as an emptyDir",
    )


def cuda_handles(facts: Facts, settings: Settings) -> Finding:
    """Whether engines on GPUs may attach the way that is set."""
    check = "CUDA handles"
    if not facts.gpu.cuda.devices:
        return not_applicable(check, NO_GPU)
    if any(address.startswith("unix:") for address in settings.listen):
        return ok(check, "taken over the unix socket")
    if settings.tls_client_ca:
        return ok(check, "taken from clients with a certificate")
    if settings.cuda_over_tcp:
        return ok(check, "taken over TCP from whoever connects")
    return warning(
        check,
        "taken from nobody: engines on GPUs can't attach their memory",
        "listen on a unix socket too (listen: unix:/run/kvdepot/kvdepot.sock), or set tls_client_ca",
    )


def _version(number: int) -> str:
    """12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"
