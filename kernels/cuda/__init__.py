"""Moving blocks on a GPU.

From the outside in:

- `backend` is what the service sees. It maps an engine's memory (`ipc`) and makes a `buffer` for each attachment, whose
  `resources` are given back at its end.
- A buffer has a `lane` for each direction: a thread that cuts each `transfer` into `steps`, issues them, and waits for
  them; `step_clock` tells when they began and ended.
- A lane issues steps to a `staging_ring`. It starts kernels (`launches`), which find the blocks in `tables`, and copies
  from or to `l1`, the pinned memory at the other end.
- `kernel` describes the kernels, which are in `prelude.cuh` and `block_transfer.cu`; `block_kernels` launches them.
- `runtime` is the seam to CUDA, `cupy_runtime` and `driver` are what is behind it; tests have a fake.
"""
