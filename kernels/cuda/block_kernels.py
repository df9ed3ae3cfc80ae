"""The kernels that copy blocks, as a device has them: compiled by CuPy, launched through the driver."""

from __future__ import annotations

from kernels.cuda import driver
from kernels.cuda.kernel import COMPILE_OPTIONS, THREADS_PER_CTA, BlockCopy, num_ctas, source
from kernels.cuda.runtime import Stream
from kernels.errors import BackendUnavailable


class BlockKernels:
    """Gather and scatter, compiled and loaded for the device that was current; it is again when they are launched.

    Compiling takes about a second, unless the result is in CuPy's cache (``CUPY_CACHE_DIR``). The driver launches a
    kernel in a third of the time that CuPy takes, 50 µs. Both directions of an attachment at once had no more than 60 %
    of an H200's link because of that.

    Raises:
        BackendUnavailable: CuPy, NVRTC or a device is missing, or they don't fit each other.
    """

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise BackendUnavailable(f"CuPy can't be imported: {error}") from error
        try:
            self._module = cupy.RawModule(code=source(), options=COMPILE_OPTIONS)
            self._gather, self._scatter = (
                int(self._module.get_function(name).kernel.ptr) for name in ("gather_blocks", "scatter_blocks")
            )
        except (RuntimeError, cupy.cuda.compiler.CompileException) as error:
            raise BackendUnavailable(f"the CUDA kernels can't be loaded: {error}") from error

    def gather(self, copy: BlockCopy, max_ctas: int, stream: Stream) -> None:
        """Starts to copy blocks into chunks.

        Raises:
            CudaError: the driver refuses.
        """
        driver.launch(self._gather, num_ctas(copy, max_ctas), THREADS_PER_CTA, copy, stream)

    def scatter(self, copy: BlockCopy, max_ctas: int, stream: Stream) -> None:
        """Starts to copy chunks into blocks.

        Raises:
            CudaError: the driver refuses.
        """
        driver.launch(self._scatter, num_ctas(copy, max_ctas), THREADS_PER_CTA, copy, stream)
