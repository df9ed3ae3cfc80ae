"""What the depot says no with: each error owns its gRPC status and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import grpc

MAX_VIOLATIONS = 10  # errors ride in headers, of which a client takes 8 KiB


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field at fault, by its path in the request."""

    field: str
    description: str


class DepotError(Exception):
    """An expected condition that a client is told about."""

    status: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]
    violations: tuple[FieldViolation, ...] = ()
    retry_after_seconds: float | None = None


class InvalidRequest(DepotError):
    """Fields are missing or wrong; nothing was changed."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations = violations[:MAX_VIOLATIONS]
        told = [f"{violation.field}: {violation.description}" for violation in self.violations]
        if len(violations) > MAX_VIOLATIONS:
            told.append(f"and {len(violations) - MAX_VIOLATIONS} more")
        super().__init__("; ".join(told))


def invalid(field: str, description: str) -> InvalidRequest:
    """An InvalidRequest for one field."""
    return InvalidRequest(FieldViolation(field, description))


class NoMessage(DepotError):
    """The bytes that came are no message of the RPC, or none came."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class InstanceNotFound(DepotError):
    """No rank of the instance is attached."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "INSTANCE_NOT_FOUND"

    def __init__(self, instance_id: str) -> None:
        super().__init__(f"no rank of instance {instance_id!r} is attached")


class RankNotFound(DepotError):
    """The rank is not attached, though others of the instance are."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "RANK_NOT_FOUND"

    def __init__(self, instance_id: str, rank: int) -> None:
        super().__init__(f"rank {rank} of instance {instance_id!r} is not attached")


class SessionNotFound(DepotError):
    """The instance has no such session."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "SESSION_NOT_FOUND"

    def __init__(self, instance_id: str, session_id: str) -> None:
        super().__init__(f"instance {instance_id!r} has no session {session_id!r}; it may have ended")


class LeaseNotFound(DepotError):
    """The lease is unknown, or of another instance or session."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "LEASE_NOT_FOUND"

    def __init__(self, lease_id: str) -> None:
        super().__init__(f"there is no lease {lease_id!r} of this session")


class LeaseExpired(DepotError):
    """The lease ended by itself."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "LEASE_EXPIRED"


class LeaseReleased(DepotError):
    """The lease was given back, by ReleaseLease or with its session."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "LEASE_RELEASED"


class LeaseRevoked(DepotError):
    """The lease was ended by ClearCache, or because a rank of its instance detached."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "LEASE_REVOKED"


class ChunkSizeMismatch(DepotError):
    """chunk_size is not a multiple of a group's block_size."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CHUNK_SIZE_MISMATCH"


class ChunkTooLarge(DepotError):
    """One chunk of the model does not fit into L1."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CHUNK_TOO_LARGE"


class RankAttached(DepotError):
    """The rank is attached by a stream that is alive."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "RANK_ATTACHED"
    retry_after_seconds = 1.0


class InstanceMismatch(DepotError):
    """The rank contradicts the instance's other ranks."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "INSTANCE_MISMATCH"


class RegionUnavailable(DepotError):
    """The engine's memory can't be opened or held, has another size than was said, or is not there any more."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "REGION_UNAVAILABLE"


class RegionForbidden(DepotError):
    """The engine's memory belongs to somebody the depot may not act for, or is attached by another tenant."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "REGION_FORBIDDEN"


class BackendUnavailable(DepotError):
    """The depot lacks the device that the regions need."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "BACKEND_UNAVAILABLE"


class NoRegions(DepotError):
    """The rank attached no memory."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NO_REGIONS"


class BlockAbsent(DepotError):
    """A chunk was stored without bytes that are asked for."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "BLOCK_ABSENT"


class TransferFailed(DepotError):
    """The device failed while bytes were being moved; the attachment ends with it."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "TRANSFER_FAILED"


class Detached(DepotError):
    """The attachment ended while its bytes were on their way."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "DETACHED"


class ObservabilityDisabled(DepotError):
    """The depot was started without events."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "OBSERVABILITY_DISABLED"


class StreamStalled(DepotError):
    """The client of a stream neither sent nor took a piece in time."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "STREAM_STALLED"


class TooManyRpcs(DepotError):
    """The limit on concurrent RPCs is reached, the depot's or the tenant's."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_RPCS"
    retry_after_seconds = 0.1


class TooManyBytes(DepotError):
    """Too many bytes are moving or arriving, of the tenant or in all."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_BYTES"
    retry_after_seconds = 0.1


class TooManyObjects(DepotError):
    """So many objects of shared memory are attached that the depot would lack descriptors for others."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_OBJECTS"


class TooManySessions(DepotError):
    """As many sessions as there may be hold leases or run operations, so that none can end for a new one."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_SESSIONS"
    retry_after_seconds = 1.0


class CredentialsMissing(DepotError):
    """The call shows neither a token nor a certificate."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "CREDENTIALS_MISSING"


class TokenUnknown(DepotError):
    """The bearer token is no tenant's."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_UNKNOWN"


class TokenExpired(DepotError):
    """The bearer token was a tenant's."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_EXPIRED"


class CertificateUnknown(DepotError):
    """The client certificate is no tenant's."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "CERTIFICATE_UNKNOWN"


class CredentialsConflict(DepotError):
    """What the call shows is of several tenants."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "CREDENTIALS_CONFLICT"


class CredentialsRevoked(DepotError):
    """What a stream was opened with stands for nobody, or for somebody else, by now."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "CREDENTIALS_REVOKED"


class InsecureTransport(DepotError):
    """A token came on a way on which others can read it."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "INSECURE_TRANSPORT"


class AdminOnly(DepotError):
    """The RPC is for admins."""

    status = grpc.StatusCode.PERMISSION_DENIED
    reason = "ADMIN_ONLY"


class OtherTenant(DepotError):
    """The request names a tenant that is not the caller."""

    status = grpc.StatusCode.PERMISSION_DENIED
    reason = "OTHER_TENANT"


class Draining(DepotError):
    """The depot is shutting down."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    retry_after_seconds = 5.0
