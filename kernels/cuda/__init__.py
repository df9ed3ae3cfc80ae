"""Blocks on a GPU.

From the outside in:

- `backend` maps an engine's memory (`ipc`) and makes a `buffer` for each attachment. When the attachment ends, the
  `resources` of its buffer are given back.
- A buffer has a `stream_worker` for each direction: a thread that cuts each `transfer` into `steps`, issues them, and
  waits for them. `phase_clock` reads when they began and ended.
- A worker issues steps to a `staging_ring`. The ring starts kernels (`launches`), which read block ids from `uploads`,
  and copies between staging buffers and `pinned_l1`.
- `kernel` describes the kernels of `prelude.cuh` and `block_transfer.cu`; `block_kernels` loads and launches them.
- `runtime` is the seam to CUDA. `cupy_runtime` and `driver` are behind it; tests have a fake.
"""
