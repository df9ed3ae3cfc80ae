"""Moving blocks on a GPU.

From the outside in:

- `backend` is what the service sees. It maps an engine's memory (`ipc`), chooses a route (`settings`, `calibration`),
  and makes a `buffer` for each attachment, whose `resources` are given back at its end.
- A buffer has a `lane` for each direction: a thread that cuts each `transfer` into `steps`, issues them, and waits for
  them; `step_clock` tells when they began and ended.
- `routes` says what a route is; there are `staged` and `zero_copy`. Both start kernels (`launches`), which find the
  blocks in `tables`. `l1` is the pinned memory at the other end.
- `kernel` loads and describes the kernels, which are in `prelude.cuh` and `block_transfer.cu`.
- `runtime` is the seam to CUDA, `cupy_runtime` and `driver` are what is behind it; tests have a fake.
"""
