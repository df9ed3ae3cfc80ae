"""A stand-in for as much of CuPy as the project uses, over the driver of the simulated card."""

from . import cuda
from ._raw import RawModule

__all__ = ["RawModule", "cuda", "is_available"]
__version__ = "0.0 (simulated)"


def is_available() -> bool:
    """Return whether there is a device."""
    return bool(cuda.runtime.getDeviceCount() > 0)
