"""The kernels that copy blocks, loaded into a device: compiled by CuPy, launched through the driver."""

from __future__ import annotations

from kernels.cuda import driver
from kernels.cuda.kernel import COMPILE_OPTIONS, THREADS_PER_CTA, KernelParams, num_ctas, source
from kernels.cuda.runtime import Stream
from kernels.errors import BackendError
from kernels.transfer import Direction


class BlockKernels:
    """Gather and scatter, loaded for the current device. The same device must be current at a launch.

    Compiling takes about a second, unless the result is in CuPy's cache (`CUPY_CACHE_DIR`). The driver launches a
    kernel in a third of the 50 µs that CuPy takes. With CuPy's launches, both directions of an attachment together
    reach at most 60 % of an H200's link.

    It needs CuPy, NVRTC and a device, in versions that fit each other.

    Raises: BackendError.
    """

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise BackendError(f"CuPy can't be imported: {error}") from error
        names = {Direction.STORE: "gather_blocks", Direction.RETRIEVE: "scatter_blocks"}
        try:
            self._module = cupy.RawModule(code=source(), options=COMPILE_OPTIONS)
            self._functions = {
                direction: int(self._module.get_function(name).kernel.ptr) for direction, name in names.items()
            }
        except (RuntimeError, cupy.cuda.compiler.CompileException) as error:
            raise BackendError(f"the CUDA kernels can't be loaded: {error}") from error

    def launch(self, direction: Direction, params: KernelParams, max_ctas: int, stream: Stream) -> None:
        """Start to gather blocks into chunks, or to scatter chunks into blocks.

        Raises: CudaError.
        """
        driver.launch(self._functions[direction], num_ctas(params, max_ctas), THREADS_PER_CTA, params, stream)
