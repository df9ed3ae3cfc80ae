"""What can be set about moving blocks on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RouteName(StrEnum):
    """Through staging buffers and a copy engine, or by a kernel alone."""

    STAGED = "cuda-staged"
    ZERO_COPY = "cuda-zero-copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaSettings:
    """The route is measured when an engine attaches, for requests of ``typical_tokens``, if it is None.

    Each direction of an attachment has ``staging_slots`` buffers of ``staging_bytes`` on the device, and at most
    ``steps_ahead`` of such steps on its streams. A launch has ``max_ctas`` at most. L1 is registered ``pin_bytes`` at
    a time, a multiple of the page size.
    """

    route: RouteName | None = None
    typical_tokens: int = 2_048
    staging_bytes: int = 16 << 20
    staging_slots: int = 4
    steps_ahead: int = 32
    max_ctas: int = 32
    pin_bytes: int = 16 << 20
