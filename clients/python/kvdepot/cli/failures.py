"""What a command says about a call that failed: why, and what to do about it."""

from __future__ import annotations

import grpc

from kvdepot.cli.address import BadAddress
from kvdepot.cli.cause import Cause
from kvdepot.credentials import Credentials
from kvdepot.errors import DepotError

_TOKEN = "give --token-file FILE, which has a token of a tenant, or set KVDEPOT_CLIENT_TOKEN_FILE"
_HINTS = {
    "CREDENTIALS_MISSING": _TOKEN,
    "TOKEN_UNKNOWN": "is it the token of this depot? The depot's file of tenants holds the SHA-256 of each token",
    "TOKEN_EXPIRED": "ask the operator of the depot for a new token",
    "CERTIFICATE_UNKNOWN": "the depot's file of tenants must have a name of the certificate, or give --token-file FILE",
    "CREDENTIALS_CONFLICT": "give the token or the certificate, or both of one tenant",
    "INSECURE_TRANSPORT": "replace the token, since others may have read it, and connect over TLS or a unix socket",
    "ADMIN_ONLY": "give the token of an admin with --token-file FILE",
    "OTHER_TENANT": "leave out --tenant, or give the token of an admin with --token-file FILE",
    "DRAINING": "wait for the depot that takes its place, or name another one with --address",
    "TOO_MANY_RPCS": "try again",
    "OBSERVABILITY_DISABLED": "start the depot without --disable-observability",
    "INTERNAL": "this is a bug: the depot's log has the traceback",
}
_NOT_A_DEPOT = Cause(
    "a gRPC server answers there, and it does not have what this command calls",
    "is it a depot of an older version? `kvdepot status` shows its version. Else name the right port with --address",
)
_PROXY = Cause("an HTTP/2 server answers there that does not speak gRPC", "name the port at which the depot listens")


def why(error: Exception, address: str, credentials: Credentials) -> Cause | str:
    """Return why a call to a depot failed. If no answer came from a depot, connect once more to find out."""
    if isinstance(error, BadAddress):
        return error.cause
    if isinstance(error, OSError) and error.filename:
        return _one_line(f"{error.filename}: {error.strerror}")
    if not isinstance(error, DepotError):
        return _one_line(str(error))
    if (error.reason != error.code.name and error.reason != "UNREACHABLE") or error.violations:
        return _answered(error)
    if "http2 header with status" in error.message:  # gRPC's words
        return _PROXY
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return _NOT_A_DEPOT
    if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN):
        return _unanswered(error, address, credentials)
    return _answered(error)


def _answered(error: DepotError) -> Cause | str:
    """Return what the depot says, with a hint if there is one."""
    text = _one_line(error.message if error.code is grpc.StatusCode.NOT_FOUND else str(error))
    hint = _HINTS.get(error.reason)
    return Cause(text, hint) if hint is not None else text


def _unanswered(error: DepotError, address: str, credentials: Credentials) -> Cause:
    from kvdepot.cli.unreachable import why_unreachable  # only a call that failed needs it

    cause = why_unreachable(address, credentials)
    if cause is not None:
        return cause
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Cause(
            "a depot takes the connection, and did not answer the call in time",
            "it is busy or hangs: look at its log, its CPU, and `kvdepot_event_loop_lag_seconds`",
        )
    return Cause(
        f"the connection failed, and works now: {_one_line(error.message)}", "the depot may have restarted: try again"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
