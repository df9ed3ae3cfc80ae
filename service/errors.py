"""The conditions in which the depot refuses a call. Each error owns its gRPC status and its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from grpc import StatusCode

MAX_BAD_RANGES = 64
MAX_VIOLATIONS = 10  # errors are sent in headers, and clients accept 8 KiB of headers


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field at fault, by its path in the request."""

    field: str
    description: str


class DepotError(Exception):
    """An expected condition. The client gets its gRPC status and its reason. Each condition is a subclass."""

    status: ClassVar[StatusCode]
    reason: ClassVar[str]
    retry_after_seconds: ClassVar[float | None]
    violations: tuple[FieldViolation, ...] = ()
    metadata: Mapping[str, str] = MappingProxyType({})
    """Facts for programs, by name."""

    def __init_subclass__(cls, *, status: StatusCode, reason: str, retry_after_seconds: float | None = None) -> None:
        cls.status = status
        cls.reason = reason
        cls.retry_after_seconds = retry_after_seconds


class InvalidRequest(DepotError, status=StatusCode.INVALID_ARGUMENT, reason="INVALID_REQUEST"):
    """Fields are missing or wrong; nothing was changed."""

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations = violations[:MAX_VIOLATIONS]
        parts = [f"{violation.field}: {violation.description}" for violation in self.violations]
        if len(violations) > MAX_VIOLATIONS:
            parts.append(f"and {len(violations) - MAX_VIOLATIONS} more")
        super().__init__("; ".join(parts))


def invalid(field: str, description: str) -> InvalidRequest:
    """Return an InvalidRequest for one field."""
    return InvalidRequest(FieldViolation(field, description))


class NoMessage(DepotError, status=StatusCode.INVALID_ARGUMENT, reason="INVALID_REQUEST"):
    """The request is no message of the RPC, or the call ended without one."""


class InstanceNotFound(DepotError, status=StatusCode.NOT_FOUND, reason="INSTANCE_NOT_FOUND"):
    """No rank of the instance, or no instance of the model, is attached."""

    def __init__(self, instance_id: str = "", *, model_name: str = "") -> None:
        what = f"instance of model {model_name!r}" if model_name else f"rank of instance {instance_id!r}"
        super().__init__(f"no {what} is attached")


class RankNotFound(DepotError, status=StatusCode.NOT_FOUND, reason="RANK_NOT_FOUND"):
    """The rank is not attached. Other ranks of the instance are."""

    def __init__(self, instance_id: str, rank: int) -> None:
        super().__init__(f"rank {rank} of instance {instance_id!r} is not attached")


class SessionNotFound(DepotError, status=StatusCode.NOT_FOUND, reason="SESSION_NOT_FOUND"):
    """The instance has no such session."""

    def __init__(self, instance_id: str, session_id: str) -> None:
        super().__init__(f"instance {instance_id!r} has no session {session_id!r}; it may have ended")


class LeaseNotFound(DepotError, status=StatusCode.NOT_FOUND, reason="LEASE_NOT_FOUND"):
    """The lease is unknown, or of another instance or session."""

    def __init__(self, lease_id: str) -> None:
        super().__init__(f"there is no lease {lease_id!r} of this session")


class LeaseExpired(DepotError, status=StatusCode.NOT_FOUND, reason="LEASE_EXPIRED"):
    """The lease ended by itself."""


class LeaseReleased(DepotError, status=StatusCode.NOT_FOUND, reason="LEASE_RELEASED"):
    """The lease was given back, by ReleaseLease or with its session."""


class LeaseRevoked(DepotError, status=StatusCode.NOT_FOUND, reason="LEASE_REVOKED"):
    """The lease was ended by ClearCache, or because a rank of its instance detached."""


class ChunkSizeMismatch(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="CHUNK_SIZE_MISMATCH"):
    """chunk_size is not a multiple of a group's block_size."""


class ChunkTooLarge(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="CHUNK_TOO_LARGE"):
    """One chunk of the model does not fit into L1."""


class RankAttached(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="RANK_ATTACHED", retry_after_seconds=1.0):
    """The rank is attached by a stream that is alive."""


class InstanceMismatch(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="INSTANCE_MISMATCH"):
    """The rank contradicts the instance's other ranks."""


class RegionUnavailable(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="REGION_UNAVAILABLE"):
    """The engine's memory can't be opened or held, has another size than declared, or has vanished."""


class RegionForbidden(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="REGION_FORBIDDEN"):
    """The engine's memory belongs to a user that the depot may not act for, or another tenant has attached it."""


class BackendUnavailable(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="BACKEND_UNAVAILABLE"):
    """The depot lacks the device that the regions need."""


class BlockHashSeedMissing(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="BLOCK_HASH_SEED_MISSING"):
    """The seed of the engine's block hashes is unknown, and chunks outlive the depot's process."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(
            f"instance {instance_id!r} names prompts by block hashes and attached without block_hash_seed, and this "
            "depot keeps chunks after its end: attach with a block_hash_seed that names the algorithm and the seed of "
            "the hashes; if the seed is random in each process, give all engines the same one, or send token ids"
        )


class NoRegions(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="NO_REGIONS"):
    """The rank attached no memory."""


class BlockAbsent(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="BLOCK_ABSENT"):
    """A chunk was stored without bytes that the call needs."""


class TransferFailed(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="TRANSFER_FAILED"):
    """The device failed during a transfer; the attachment ends with it."""


class Detached(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="DETACHED"):
    """The attachment ended during the transfer."""


class ChunkCorrupt(DepotError, status=StatusCode.DATA_LOSS, reason="CHUNK_CORRUPT"):
    """Bytes of leased chunks do not match their checksums. The engine computes the tokens from the first bad one on.

    `positions` are those of the corrupt chunks, ascending and counted from token 0. The metadata has `first_bad_token`,
    by default that of the first corrupt chunk, and `bad_tokens`: ranges FIRST:END, without END. Too many ranges are cut
    to `MAX_BAD_RANGES`, the last of which then covers the rest.
    """

    def __init__(self, positions: Sequence[int], chunk_size: int, *, first_bad_token: int | None = None) -> None:
        ranges: list[list[int]] = []
        for position in positions:
            first, end = position * chunk_size, (position + 1) * chunk_size
            if ranges and (ranges[-1][1] == first or len(ranges) == MAX_BAD_RANGES):
                ranges[-1][1] = end
            else:
                ranges.append([first, end])
        first_bad_token = ranges[0][0] if first_bad_token is None else first_bad_token
        bad_tokens = ",".join(f"{first}:{end}" for first, end in ranges)
        self.metadata = {"first_bad_token": f"{first_bad_token}", "bad_tokens": bad_tokens}
        super().__init__(
            f"the bytes of {len(positions)} chunks are damaged: compute the tokens from {first_bad_token} on"
        )


class ChunkLost(DepotError, status=StatusCode.ABORTED, reason="CHUNK_LOST"):
    """A leased chunk that was on its way from a tier did not arrive. The engine computes the tokens from a bad one on.

    The metadata has `first_bad_token`.
    """

    def __init__(self, first_bad_token: int, detail: str) -> None:
        self.metadata = {"first_bad_token": f"{first_bad_token}"}
        super().__init__(f"{detail}: compute the tokens from {first_bad_token} on")


class ObservabilityDisabled(DepotError, status=StatusCode.FAILED_PRECONDITION, reason="OBSERVABILITY_DISABLED"):
    """The depot was started without events."""


class StreamStalled(DepotError, status=StatusCode.DEADLINE_EXCEEDED, reason="STREAM_STALLED"):
    """The client of a stream neither sent nor took a piece in time."""


class TooManyRpcs(DepotError, status=StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_RPCS", retry_after_seconds=0.1):
    """The limit on concurrent RPCs is reached, the depot's or the tenant's."""


class TooManyBytes(DepotError, status=StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_BYTES", retry_after_seconds=0.1):
    """Too many bytes are in flight, of the tenant or in all."""


class TooManyObjects(DepotError, status=StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_OBJECTS"):
    """So many objects of shared memory are attached that file descriptors would run out."""


class TooManySessions(
    DepotError, status=StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_SESSIONS", retry_after_seconds=1.0
):
    """All sessions that may exist hold leases or run operations, so none can end for a new one."""


class PinLimitExceeded(DepotError, status=StatusCode.RESOURCE_EXHAUSTED, reason="PIN_LIMIT_EXCEEDED"):
    """The pins of the tenant, or of all tenants, would hold too much of L1."""

    def __init__(self, what: str, needed_bytes: int, pinned_bytes: int, max_pinned_bytes: int) -> None:
        self.metadata = {
            "needed_bytes": f"{needed_bytes}",
            "pinned_bytes": f"{pinned_bytes}",
            "max_pinned_bytes": f"{max_pinned_bytes}",
        }
        super().__init__(f"{what}; the tenant has pinned {pinned_bytes} of its {max_pinned_bytes} bytes")


class TooManyPrefetches(
    DepotError, status=StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_PREFETCHES", retry_after_seconds=1.0
):
    """So many prefetches of the tenant are loading that no other one may begin."""


class CredentialsMissing(DepotError, status=StatusCode.UNAUTHENTICATED, reason="CREDENTIALS_MISSING"):
    """The call has neither a token nor a certificate."""


class TokenUnknown(DepotError, status=StatusCode.UNAUTHENTICATED, reason="TOKEN_UNKNOWN"):
    """No tenant has the bearer token."""


class TokenExpired(DepotError, status=StatusCode.UNAUTHENTICATED, reason="TOKEN_EXPIRED"):
    """The bearer token of a tenant has expired."""


class CertificateUnknown(DepotError, status=StatusCode.UNAUTHENTICATED, reason="CERTIFICATE_UNKNOWN"):
    """No tenant has the client certificate."""


class CredentialsConflict(DepotError, status=StatusCode.UNAUTHENTICATED, reason="CREDENTIALS_CONFLICT"):
    """The credentials of the call stand for several tenants."""


class CredentialsRevoked(DepotError, status=StatusCode.UNAUTHENTICATED, reason="CREDENTIALS_REVOKED"):
    """The credentials of an open stream have expired, or stand for another tenant."""


class InsecureTransport(DepotError, status=StatusCode.UNAUTHENTICATED, reason="INSECURE_TRANSPORT"):
    """A token came over a transport on which others can read it."""


class AdminOnly(DepotError, status=StatusCode.PERMISSION_DENIED, reason="ADMIN_ONLY"):
    """The RPC is for admins."""


class OtherTenant(DepotError, status=StatusCode.PERMISSION_DENIED, reason="OTHER_TENANT"):
    """The request names another tenant than the caller."""


class Draining(DepotError, status=StatusCode.UNAVAILABLE, reason="DRAINING", retry_after_seconds=5.0):
    """The depot is shutting down."""
