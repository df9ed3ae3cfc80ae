"""Kernels from source: compiled for this CPU by g++, after the header that makes CUDA's words C++."""

import ctypes as _ctypes
import hashlib as _hashlib
import os as _os
import re as _re
import subprocess as _subprocess
from pathlib import Path as _Path

from .cuda import driver as _driver
from .cuda import get_current_stream as _get_current_stream
from .cuda import runtime as _runtime
from .cuda.compiler import CompileException as _CompileException

_HEADERS = _Path(__file__).parents[4] / "kernels" / "cuda"
# Only kernels of one structure, passed by value.
_KERNEL = _re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(const (\w+) \w+\)')
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-ftls-model=initial-exec", "-Wno-unknown-pragmas")


class RawModule:
    """The kernels of a source. The options of NVRTC are accepted and mean nothing here."""

    def __init__(self, code=None, *, path=None, options=(), backend="nvrtc", translate_cucomplex=False):
        if code is None or path is not None:
            raise NotImplementedError("the simulated card compiles source only")
        self.code, self.options, self.backend = code, options, backend
        self._argument_types = dict(_KERNEL.findall(code))
        self._module = _ctypes.c_void_p()
        _runtime._use_a_device()
        _driver._call("cuModuleLoad", _ctypes.byref(self._module), str(self._compiled()).encode())

    def get_function(self, name):
        """Return a kernel by its name."""
        function = _ctypes.c_void_p()
        _driver._call("cuModuleGetFunction", _ctypes.byref(function), self._module, name.encode())
        return _Kernel(function)

    def _compiled(self):
        """Return the library, which all processes of the card share."""
        exports = "".join(
            f'extern "C" void run_{name}(const {type_name}* argument, unsigned ctas, unsigned threads, '
            f"Observation* seen) {{ run_on_cpu({name}, *argument, ctas, threads, *seen); }}\n"
            for name, type_name in self._argument_types.items()
        )
        text = f'#include "on_cpu.h"\n{self.code}\n#line 1 "exports"\n{exports}'
        folder = _Path(_os.environ["SIMULATED_CARD"], "kernels")
        library = folder / f"{_hashlib.sha256(text.encode()).hexdigest()}.so"
        if not library.exists():
            source, unfinished = (library.with_name(f"{_os.getpid()}-{library.stem}.{end}") for end in ("cpp", "so"))
            source.write_text(text)
            done = _subprocess.run(
                ["g++", *_FLAGS, f"-I{_HEADERS}", "-o", unfinished, source], capture_output=True, text=True
            )
            if done.returncode:
                raise _CompileException(done.stderr, self.code, str(source), self.options)
            unfinished.rename(library)
        return library


class _Function:
    """A kernel as the driver has it."""

    def __init__(self, ptr):
        self.ptr = ptr


class _Kernel:
    """Launches a kernel on the stream that this thread has entered."""

    def __init__(self, function):
        self._function = function
        self.kernel = _Function(function.value)

    def __call__(self, grid, block, args, *, shared_mem=0):
        (argument,) = args
        if not argument.flags.c_contiguous:
            raise TypeError("the argument of a kernel is not contiguous")
        parameters = (_ctypes.c_void_p * 1)(argument.ctypes.data)
        sizes = [*grid, 1, 1][:3] + [*block, 1, 1][:3]
        _runtime._use_a_device()
        stream = _ctypes.c_uint64(_get_current_stream().ptr)
        _driver._call("cuLaunchKernel", self._function, *sizes, shared_mem, stream, parameters, None)
