"""Settings of transfers on a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaSettings:
    """Sizes and limits of an attachment's transfers. docs/gpu.md has the measurements behind the defaults.

    Each direction has `staging_slots` buffers of `staging_bytes` on the device, and at most `steps_ahead` steps
    on its streams. A launch has at most `max_ctas` CTAs. L1 is registered in parts of `pin_bytes`, a multiple of
    the page size.
    """

    staging_bytes: int = 16 << 20
    staging_slots: int = 4
    steps_ahead: int = 32
    max_ctas: int = 32
    pin_bytes: int = 16 << 20
