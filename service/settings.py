"""Every setting of the server. Flags override KVDEPOT_… variables, and these override a YAML file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kernels.cuda.settings import CudaSettings
from service.l1.arena import HugePages
from service.l1.eviction.policy_name import PolicyName
from service.l1.keys import MAX_CHUNK_SIZE
from service.l1.verify import Verify
from service.setting_types import (
    KvEventsFormat,
    KvEventsHashes,
    LogFormat,
    LogLevel,
    OneOrList,
    Seconds,
    Size,
    Texts,
    ZeromqAddress,
)
from service.tiers.address.address import TierAddress, parse_all
from service.tiers.write_policy import WritePolicy
from service.units import format_duration, format_size, parse_duration, parse_size
from telemetry.kv_events.topics import check_template, check_tenants
from telemetry.loading import SubscriberSource

CUDA = CudaSettings()
YEAR_SECONDS = 366 * 86_400.0


class Settings(BaseSettings):
    """All settings, frozen. `__main__` builds them once. The text below a setting is its help."""

    model_config = SettingsConfigDict(env_prefix="KVDEPOT_", frozen=True, extra="forbid", use_attribute_docstrings=True)

    listen: Texts = ("127.0.0.1:50051",)
    """address to serve on, HOST:PORT or unix:PATH; repeatable"""
    unix_socket_mode: str = "600"
    """permissions of the unix sockets, in octal"""
    unix_socket_owner: str = ""
    """owner of the unix sockets, USER, USER:GROUP or :GROUP, names or numbers; empty: the depot's user"""
    tls_cert: str = ""
    """PEM file of the server's certificate and its chain; turns on TLS for TCP"""
    tls_key: str = ""
    """PEM file of the certificate's private key"""
    tls_client_ca: str = ""
    """PEM file of the authorities that sign clients' certificates; then every TCP client needs one"""
    tenants: str = ""
    """YAML or JSON file of the tenants that may call; empty: every client is the same tenant"""
    tokens_over_plain_tcp: bool = False
    """accept bearer tokens from other machines over TCP without TLS, where others can read them"""
    open_reflection: bool = False
    """also serve reflection to unauthenticated callers"""
    l1_size: Size = Field(4 << 30, ge=4096)
    """host memory for chunks, such as 8GiB"""
    l1_file: str = ""
    """file in /dev/shm or hugetlbfs that keeps the chunks when the depot ends; empty: they end with the depot"""
    l1_huge_pages: HugePages = HugePages.TRANSPARENT
    """huge pages of L1: none, transparent or reserved"""
    l2: OneOrList = Field(
        (),
        description="slower tier behind L1, such as disk:///var/lib/kvdepot?size=200GiB; repeatable, in the order in "
        "which they are asked; docs/tiers.md has the addresses",
    )
    l2_write: WritePolicy = Field(
        WritePolicy.SECOND_TOUCH,
        description="chunks that are written to the tiers: second-touch: those that a second request finds; all; "
        "evicted: those that L1 evicts next; none",
    )
    eviction: PolicyName = Field(
        PolicyName.AUTO,
        description="which chunk leaves a full L1: auto: as the depot learns; learned: what is least likely to be used "
        "soon, by what it costs to compute; lru: used least recently; lru2: by the last use but one; lfu: used least "
        "often",
    )
    chunk_size: int = Field(256, ge=1, le=MAX_CHUNK_SIZE)
    """tokens per chunk, of engines that ask for no other; they get the multiple of their blocks that is nearest"""
    cache_epoch: int = Field(0, ge=0, le=(1 << 63) - 1)
    """number that is part of the cache identity; raising it forgets everything that was stored before"""
    transfer_threads: int = Field(2, ge=1, le=256)
    """threads that copy, for each direction"""
    cuda_staging_size: Size = Field(CUDA.staging_bytes, ge=1 << 20, le=1 << 30)
    """size of one staging buffer on a GPU"""
    cuda_staging_slots: int = Field(CUDA.staging_slots, ge=2, le=64)
    """staging buffers of an attachment, for each direction"""
    cuda_max_ctas: int = Field(CUDA.max_ctas, ge=1, le=1024)
    """most CTAs of a GPU that a copy uses"""
    cuda_over_tcp: bool = False
    """accept CUDA handles over TCP"""
    verify: Verify = Field(
        Verify.ALL,
        description="what compares chunks with their checksums: off: nothing; store: a scrub in the background; "
        "retrieve: each retrieve; all: both. What was stored with off has no checksum, and is served unverified",
    )
    scrub_rate: Size = Field(256 << 20, ge=0)
    """bytes that the scrub reads in a second, such as 256MiB; 0: no scrub"""
    lease_ttl: Seconds = Field(60.0, gt=0, le=YEAR_SECONDS)
    """how long a lease protects chunks, such as 60s"""
    pin_ttl_max: Seconds = Field(86_400.0, gt=0, le=YEAR_SECONDS)
    """longest time that a pin protects chunks without a hit, such as 24h"""
    session_idle_timeout: Seconds = Field(600.0, gt=0, le=YEAR_SECONDS)
    """how long a session may be idle before it ends"""
    max_wait: Seconds = Field(30.0, gt=0, le=YEAR_SECONDS)
    """longest time that a call waits for another call or for its client"""
    drain_timeout: Seconds = Field(20.0, ge=0, le=YEAR_SECONDS)
    """how long running calls may take to end at shutdown"""
    max_concurrent_rpcs: int = Field(1024, ge=1)
    """most calls that run at a time; more are refused"""
    max_attachments: int = Field(1024, ge=1)
    """most attachments and event feeds that are open at a time"""
    tenant_max_concurrent_rpcs: int = Field(256, ge=1)
    """most running calls of one tenant, unless the file of tenants says otherwise"""
    tenant_max_attachments: int = Field(256, ge=1)
    """most attachments and event feeds of one tenant, unless the file of tenants says otherwise"""
    tenant_max_bytes_in_flight: Size = Field(4 << 30, ge=1)
    """most bytes in flight of one tenant, unless the file of tenants says otherwise"""
    tenant_max_pinned: float = Field(0.1, ge=0, le=0.5)
    """share of L1 that the pins of one tenant may hold, unless the file of tenants says otherwise; 0: no pins"""
    max_message_size: Size = Field(16 << 20, ge=2 << 20, le=1 << 30)
    """largest message that the server accepts"""
    disable_observability: bool = False
    """publish no events: no logs of events, no metrics, no spans"""
    disable_logging: bool = False
    """log no events"""
    event_queue_size: int = Field(10_000, ge=1, le=10_000_000)
    """most events that wait in the queue; more are dropped and counted"""
    subscriber: OneOrList = Field(
        (),
        description="your own subscriber, which gets every event: package.module:factory, where Python can import the"
        ' module, or package.module:factory={"name": value} with arguments for the factory; repeatable',
    )
    kv_events: ZeromqAddress = ""
    """ZeroMQ address where KV events for routers are published, such as tcp://*:5557; empty: none"""
    kv_events_replay: ZeromqAddress = ""
    """ZeroMQ address where readers ask for KV events that they lost, such as tcp://*:5558; empty: none"""
    kv_events_format: KvEventsFormat = KvEventsFormat.MAP
    """map: each KV event is a map with its type; array: it is an array, as vLLM before 0.12 sends it"""
    kv_events_hashes: KvEventsHashes = KvEventsHashes.INT
    """int: hashes in KV events are the low 64 bits of a block's hash; bytes: the whole hash"""
    kv_events_topic: str = "kv@{pod}@{model}"
    """topic of KV events, with {pod}, {model} and {tenant}"""
    kv_events_pod: str = Field("", pattern=r"^[^@\s]*$")
    """name that stands for {pod} in kv_events_topic; empty: the host's name"""
    kv_events_tenants: Texts = ()
    """tenants whose blocks KV events tell of, or * for all; empty: the default tenant alone"""
    kv_events_memory: Size = Field(256 << 20, ge=1 << 20)
    """most bytes of the hashes and tokens of blocks that KV events need; the oldest leave first"""
    kv_events_replay_size: Size = Field(64 << 20, ge=1 << 16)
    """most bytes of KV events that are kept for kv_events_replay"""
    l0_sample_rate: float = Field(0.01, ge=0, le=1)
    """share of the engines' blocks whose lifecycle is measured"""
    disable_activity: bool = False
    """keep no history of the last hour's activity, which `kvdepot top` and the console show"""
    disable_metrics: bool = False
    """provide no metrics"""
    prometheus_host: str = Field("127.0.0.1", pattern=r"^[^\s]+$")
    """address of the HTTP pages: /metrics for Prometheus, /healthz, /readyz"""
    prometheus_port: int = Field(9464, ge=0, le=65535)
    """port of the HTTP pages; 0: any free port"""
    health_without_metrics: bool = False
    """serve /healthz and /readyz also where no metrics page is served"""
    console_port: int = Field(0, ge=0, le=65535)
    """port of the console, a page for browsers; 0: no console"""
    console_host: str = Field("127.0.0.1", pattern=r"^[^\s]+$")
    """address of the console; with tenants, TLS is needed for other machines"""
    otlp_endpoint: str = ""
    """collector that gets telemetry over OTLP, such as http://localhost:4317; no metrics page then"""
    record_trace: str = ""
    """file that gets a line for each request, as a trace for `kvdepot replay`, without tokens; empty: none"""
    record_trace_size: Size = Field(1 << 30, ge=1 << 20)
    """most bytes of record_trace and its earlier parts; the oldest part is removed for new requests"""
    enable_tracing: bool = False
    """record spans; needs otlp_endpoint or trace_console"""
    trace_console: bool = False
    """write spans to standard output"""
    log_level: LogLevel = LogLevel.INFO
    """lowest level that is logged: debug, info, warning or error"""
    log_format: LogFormat = LogFormat.TEXT
    """text for people, or json: one object per line"""

    @field_validator("unix_socket_mode")
    @classmethod
    def _octal(cls, value: str) -> str:
        if not re.fullmatch("0{0,3}[0-7]{1,3}", value):
            raise ValueError(f"{value!r} is not an octal mode such as 600 or 660")
        return value

    @field_validator("unix_socket_owner")
    @classmethod
    def _user_and_group(cls, value: str) -> str:
        if value and not re.fullmatch(r"[^\s:]+(:[^\s:]+)?|:[^\s:]+", value):
            raise ValueError(f"{value!r} is not USER, USER:GROUP or :GROUP")
        return value

    @field_validator("subscriber")
    @classmethod
    def _sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            SubscriberSource.parse(text)
        return value

    @field_validator("l2")
    @classmethod
    def _tiers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_all(value)
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not an address such as http://localhost:4317")
        return value

    @field_validator("kv_events_topic")
    @classmethod
    def _topic(cls, value: str) -> str:
        check_template(value)
        return value

    @field_validator("kv_events_tenants")
    @classmethod
    def _without_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(filter(None, value))

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("there is no address")
        for address in value:
            host, _, rest = address.rpartition(":")
            is_port = rest.isdecimal() and int(rest) <= 65_535
            if not (host and is_port) and not (address.startswith("unix:") and len(address) > len("unix:")):
                raise ValueError(f"{address!r} is neither HOST:PORT nor unix:PATH")
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> Settings:
        for name, needed in (
            ("tls_cert", "tls_key"),
            ("tls_key", "tls_cert"),
            ("tls_client_ca", "tls_cert"),
            ("trace_console", "enable_tracing"),
            ("kv_events_replay", "kv_events"),
        ):
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"{name}: also set {needed}")
        if self.kv_events and self.disable_observability:
            raise ValueError("kv_events: disable_observability leaves no events to publish")
        try:
            check_tenants(self.kv_events_topic, self.kv_events_tenants)
        except ValueError as error:
            raise ValueError(f"kv_events_tenants: {error}") from error
        if self.enable_tracing and not (self.otlp_endpoint or self.trace_console):
            raise ValueError("enable_tracing: spans have no destination; also set otlp_endpoint or trace_console")
        return self

    @property
    def serves_metrics_page(self) -> bool:
        """Whether Prometheus can scrape metrics: they are measured, and not sent to a collector."""
        return not (self.disable_observability or self.disable_metrics or self.otlp_endpoint)

    def tier_addresses(self) -> tuple[TierAddress, ...]:
        """Return the addresses of the tiers behind L1, in order."""
        return parse_all(self.l2)

    def described(self) -> dict[str, str]:
        """Return every setting as text, without the arguments of subscribers, which may be secrets."""
        return {name: _described(name, getattr(self, name)) for name in type(self).model_fields}

    @classmethod
    def has_unit(cls, name: str) -> bool:
        """Whether a setting is a size or a duration."""
        return _formatter(name) is not None

    @classmethod
    def shown(cls, name: str, value: object) -> str:
        """Return a value of a setting as text, with its unit."""
        format_of = _formatter(name)
        return format_of(value) if format_of is not None and isinstance(value, (int, float)) else f"{value}"


def _formatter(name: str) -> Callable[[Any], str] | None:
    parsers = [each.func for each in Settings.model_fields[name].metadata if isinstance(each, BeforeValidator)]
    return next((formats for parser, formats in _FORMATTERS if parser in parsers), None)


_FORMATTERS: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (parse_size, format_size),
    (parse_duration, format_duration),
)


def _described(name: str, value: object) -> str:
    if name == "subscriber":
        value = tuple(text.partition("=")[0] for text in value) if isinstance(value, tuple) else ()
    if name in ("subscriber", "l2"):
        return json.dumps(value) if value else ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return Settings.shown(name, value)
