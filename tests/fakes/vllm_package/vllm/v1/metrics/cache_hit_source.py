"""Where cached tokens come from, as in vLLM 0.32."""

from enum import StrEnum


class CacheHitSource(StrEnum):
    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    EXTERNAL_UNSPECIFIED = "external_unspecified"
