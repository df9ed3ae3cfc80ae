"""Where the depot serves and what it sends to: addresses, sockets, TLS, tenants."""

from __future__ import annotations

from service.doctor.facts import AddressFacts, Facts, Holder, SocketFacts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.rpc.listen import is_on_this_machine
from service.settings import Settings

MAX_SOCKET_PATH_BYTES = 107
SOON_SECONDS = 14 * 86_400.0

_STICKY, _ANYBODY_WRITES = 0o1000, 0o002


def listener(address: AddressFacts, settings: Settings) -> Finding:
    """Whether one address can be listened on, by whom it may be called, and who has it if it is taken."""
    check = f"listen on {address.address}"
    if address.holder is Holder.OTHER:
        return failure(
            check, "another process has it", "stop that process (ss -lptn), or set listen to another address"
        )
    if address.why_not:
        return failure(check, address.why_not, "set listen to an address of this machine, to a port above 1023")
    if address.socket is not None:
        problem = _socket(check, address.socket)
        if problem is not None:
            return problem
    if not is_on_this_machine(address.address):
        open_door = _open_door(check, settings)
        if open_door is not None:
            return open_door
    return ok(check, "a depot serves there" if address.holder is Holder.DEPOT else "free")


def metrics(facts: Facts, settings: Settings) -> Finding:
    """Whether Prometheus can be served."""
    check, address = "metrics", facts.metrics
    if address is None:
        return not_applicable(check, "none are served for Prometheus")
    if address.holder is Holder.OTHER:
        return failure(
            check, f"another process has {address.address}", "set prometheus_port to another port; 0 takes any"
        )
    if address.why_not:
        return failure(
            check, f"{address.address}: {address.why_not}", "set prometheus_host to an address of this machine"
        )
    return ok(check, f"{address.address} is " + ("served by a depot" if address.holder is Holder.DEPOT else "free"))


def collector(facts: Facts, settings: Settings) -> Finding:
    """Whether the collector answers."""
    check = "OTLP collector"
    if facts.why_no_collector is None:
        return not_applicable(check, "none is set")
    if facts.why_no_collector:
        return failure(
            check,
            f"{settings.otlp_endpoint} does not answer: {facts.why_no_collector}",
            "check otlp_endpoint (its port for gRPC is 4317) and the network policy; telemetry is lost meanwhile",
        )
    return ok(check, f"{settings.otlp_endpoint} answers")


def certificate(facts: Facts, settings: Settings) -> Finding:
    """Whether the files for TLS can be used, and for how long."""
    check, found = "TLS certificate", facts.certificate
    if found is None:
        return not_applicable(check, "TCP is served without TLS")
    if found.problem:
        return failure(check, found.problem, "check tls_cert, tls_key and tls_client_ca, and the Secret they come from")
    left = f"{found.subject}: {found.seconds_left / 86_400:.1f} days left"
    if found.seconds_left < SOON_SECONDS:
        return warning(check, left, "renew it: new files are used without a restart")
    return ok(check, left)


def tenants(facts: Facts, settings: Settings) -> Finding:
    """Whether the file of tenants can be used."""
    check = "tenants"
    if facts.why_no_tenants is None:
        return not_applicable(check, "none are set: everybody who can connect is one tenant")
    if facts.why_no_tenants:
        return failure(check, "; ".join(facts.why_no_tenants.splitlines()), f"mend {settings.tenants}")
    return ok(check, settings.tenants)


def _open_door(check: str, settings: Settings) -> Finding | None:
    """What is wrong with an address that other machines reach."""
    if not (settings.tenants or settings.tls_client_ca):
        return warning(
            check,
            "whoever reaches it can read, write and clear the whole cache",
            "set tenants and tls_cert, or tls_client_ca; or listen on 127.0.0.1 or unix: only",
        )
    if settings.tls_cert:
        return None
    if settings.tokens_over_plain_tcp:
        return warning(check, "tokens come in the clear: who listens in can use them", "set tls_cert and tls_key")
    return failure(check, "no tenant can call: tokens are not taken over TCP without TLS", "set tls_cert and tls_key")


def _socket(check: str, found: SocketFacts) -> Finding | None:
    if found.path_bytes > MAX_SOCKET_PATH_BYTES:
        return failure(
            check,
            f"the path has {found.path_bytes} bytes, and a socket's {MAX_SOCKET_PATH_BYTES} at most",
            "shorten it",
        )
    if found.folder_mode is None:
        return failure(check, f"there is no folder {found.folder}", f"mkdir {found.folder}, or mount a volume there")
    if not found.folder_is_writable:
        return failure(
            check,
            f"this user can't make a socket in {found.folder}",
            "give the folder to the depot's user (fsGroup, an initContainer's chown), or choose another",
        )
    if found.why_no_owner:
        return failure(check, found.why_no_owner, "set unix_socket_owner to numbers, which need no name")
    if found.folder_mode & _ANYBODY_WRITES and not found.folder_mode & _STICKY:
        return warning(
            check, f"anybody can put a socket of theirs into {found.folder}", f"chmod o-w {found.folder}, or chmod +t"
        )
    return None
