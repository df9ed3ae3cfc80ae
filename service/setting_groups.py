"""The settings by purpose: for the help, the reference page and the printed configuration."""

from __future__ import annotations

from service.settings import Settings

_NAMES: dict[str, tuple[str, ...]] = {
    "Addresses": ("listen", "unix_socket_mode", "unix_socket_owner"),
    "Callers": (
        *("tls_cert", "tls_key", "tls_client_ca", "tenants", "tokens_over_plain_tcp", "open_reflection"),
        *("tenant_max_concurrent_rpcs", "tenant_max_attachments", "tenant_max_bytes_in_flight", "tenant_max_pinned"),
    ),
    "The cache": (
        *("l1_size", "l1_file", "l1_huge_pages", "eviction", "chunk_size", "cache_epoch", "verify", "scrub_rate"),
        *("lease_ttl", "pin_ttl_max", "session_idle_timeout"),
    ),
    "Tiers behind L1": ("l2", "l2_write"),
    "Transfers": (*("transfer_threads", "cuda_staging_size", "cuda_staging_slots", "cuda_max_ctas", "cuda_over_tcp"),),
    "Limits": ("max_wait", "drain_timeout", "max_concurrent_rpcs", "max_attachments", "max_message_size"),
    "HTTP and metrics": (
        *("prometheus_host", "prometheus_port", "health_without_metrics", "disable_metrics", "otlp_endpoint"),
        *("l0_sample_rate",),
    ),
    "Live pages": ("console_port", "console_host", "disable_activity"),
    "Log and traces": ("log_level", "log_format", "disable_logging", "enable_tracing", "trace_console"),
    "Recorded requests": ("record_trace", "record_trace_size"),
    "KV events for routers": (
        *("kv_events", "kv_events_replay", "kv_events_format", "kv_events_hashes", "kv_events_topic", "kv_events_pod"),
        *("kv_events_tenants", "kv_events_memory", "kv_events_replay_size"),
    ),
    "Events": ("disable_observability", "event_queue_size", "subscriber"),
}
OTHER = "Other"
NAMES_IN_GROUPS = tuple(name for names in _NAMES.values() for name in names)


def setting_groups() -> dict[str, tuple[str, ...]]:
    """Return the names of all settings by the title of their group. What is in no group is in the last one."""
    others = tuple(name for name in Settings.model_fields if name not in NAMES_IN_GROUPS)
    return {**_NAMES, **({OTHER: others} if others else {})}


def group_of(name: str) -> str:
    """Return the title of a setting's group."""
    return next(title for title, names in setting_groups().items() if name in names)
