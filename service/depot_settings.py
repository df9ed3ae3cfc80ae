"""The settings as the depot and the kernels take them."""

from __future__ import annotations

from kernels.cuda.settings import CudaSettings
from service.depot.depot import DepotLimits
from service.settings import Settings


def depot_limits(settings: Settings) -> DepotLimits:
    """Return the limits of the depot."""
    return DepotLimits(
        chunk_size=settings.chunk_size,
        lease_ttl_seconds=settings.lease_ttl,
        session_idle_timeout_seconds=settings.session_idle_timeout,
        max_wait_seconds=settings.max_wait,
        cache_epoch=settings.cache_epoch,
        chunks_outlive_depot=bool(settings.l1_file or settings.l2),
        verify=settings.verify,
        scrub_bytes_per_second=settings.scrub_rate,
        pin_ttl_max_seconds=settings.pin_ttl_max,
        max_pinned_bytes=int(settings.tenant_max_pinned * settings.l1_size),
    )


def cuda_settings(settings: Settings) -> CudaSettings:
    """Return the settings of the CUDA backend."""
    return CudaSettings(
        staging_bytes=settings.cuda_staging_size,
        staging_slots=settings.cuda_staging_slots,
        max_ctas=settings.cuda_max_ctas,
    )
