"""The driver of the simulated card, and the error of its calls."""

import ctypes as _ctypes
import functools as _functools

__all__ = ["CUDADriverError"]


class CUDADriverError(RuntimeError):
    """The driver refused a call about kernels."""

    def __init__(self, status):
        super().__init__(f"{_name(status)} ({status})")
        self.status = status


@_functools.cache
def _library():
    """Return the library.

    Raises: OSError, where there is none.
    """
    return _ctypes.CDLL("libcuda.so.1")


def _name(status):
    text = _ctypes.c_char_p()
    _library().cuGetErrorName(status, _ctypes.byref(text))
    return (text.value or b"CUDA_ERROR_%d" % status).decode()


def _call(name, *arguments):
    if status := getattr(_library(), name)(*arguments):
        raise CUDADriverError(status)
