"""Checks of the network: addresses, unix sockets, TLS, tenants, the collector."""

from __future__ import annotations

from service.doctor.facts import AddressFacts, Facts, Holder, SocketFacts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.rpc.listen import MAX_SOCKET_PATH_BYTES, is_on_this_machine
from service.settings import Settings

SOON_SECONDS = 14 * 86_400.0

_STICKY, _WRITABLE_BY_ALL = 0o1000, 0o002


def listener(address: AddressFacts, settings: Settings) -> Finding:
    """Check whether the depot can listen on an address, and whether it is safe to do so."""
    if address.holder is Holder.OTHER:
        return failure("another process has it", "stop that process (ss -lptn), or set listen to another address")
    if address.bind_error:
        return failure(address.bind_error, "set listen to an address of this machine, to a port above 1023")
    problem = None
    if address.socket is not None:
        problem = _socket_problem(address.socket)
    elif not is_on_this_machine(address.address):
        problem = _remote_access_problem(settings)
    return problem or ok("a depot serves there" if address.holder is Holder.DEPOT else "free")


def metrics(facts: Facts, settings: Settings) -> Finding:
    """Check whether the depot can serve metrics for Prometheus, and its health, over HTTP."""
    address = facts.metrics
    if address is None:
        return not_applicable("nothing is served over HTTP")
    if address.holder is Holder.OTHER:
        return failure(f"another process has {address.address}", "set prometheus_port to another port; 0 takes any")
    if address.bind_error:
        return failure(f"{address.address}: {address.bind_error}", "set prometheus_host to an address of this machine")
    return ok(f"{address.address} is " + ("served by a depot" if address.holder is Holder.DEPOT else "free"))


def console(facts: Facts, settings: Settings) -> Finding:
    """Check whether the depot can serve its console, and whether it is safe to do so."""
    address = facts.console
    if address is None:
        return not_applicable("console_port is not set")
    if address.holder is Holder.OTHER:
        return failure(f"another process has {address.address}", "set console_port to another port")
    if address.bind_error:
        return failure(f"{address.address}: {address.bind_error}", "set console_host to an address of this machine")
    if not is_on_this_machine(address.address):
        if not settings.tenants:
            return warning(
                f"{address.address}: everybody who reaches it can read it", "set tenants, or console_host to 127.0.0.1"
            )
        if not (settings.tls_cert or settings.tokens_over_plain_tcp):
            return failure(
                f"{address.address}: tokens could be read on the way", "set tls_cert, or console_host to 127.0.0.1"
            )
    return ok(f"{address.address} is " + ("served by a depot" if address.holder is Holder.DEPOT else "free"))


def collector(facts: Facts, settings: Settings) -> Finding:
    """Check whether the OTLP collector answers."""
    if facts.collector_error is None:
        return not_applicable("none is set")
    if facts.collector_error:
        return failure(
            f"{settings.otlp_endpoint} does not answer: {facts.collector_error}",
            "check otlp_endpoint (its port for gRPC is 4317) and the network policy; until then telemetry is lost",
        )
    return ok(f"{settings.otlp_endpoint} answers")


def certificate(facts: Facts, settings: Settings) -> Finding:
    """Check whether the files for TLS can be used, and for how long."""
    found = facts.certificate
    if found is None:
        return not_applicable("TCP is served without TLS")
    if found.error:
        return failure(found.error, "check tls_cert, tls_key and tls_client_ca, and the Secret they come from")
    left = f"{found.subject}: {found.seconds_left / 86_400:.1f} days left"
    if found.seconds_left < SOON_SECONDS:
        return warning(left, "renew it: new files are used without a restart")
    return ok(left)


def tenants(facts: Facts, settings: Settings) -> Finding:
    """Check whether the file of tenants can be used."""
    if facts.tenants_error is None:
        return not_applicable("none are set: every client is the same tenant")
    if facts.tenants_error:
        return failure("; ".join(facts.tenants_error.splitlines()), f"fix {settings.tenants}")
    return ok(settings.tenants)


def _remote_access_problem(settings: Settings) -> Finding | None:
    """Return what is wrong with the credentials that clients on other machines need. None: nothing."""
    if not (settings.tenants or settings.tls_client_ca):
        return warning(
            "every client that reaches it can read, write and clear the whole cache",
            "set tenants and tls_cert, or tls_client_ca; or listen on 127.0.0.1 or unix: only",
        )
    if settings.tls_cert:
        return None
    if settings.tokens_over_plain_tcp:
        return warning("tokens come in the clear: others on the network can read them", "set tls_cert and tls_key")
    return failure("no tenant can call: tokens are refused over TCP without TLS", "set tls_cert and tls_key")


def _socket_problem(found: SocketFacts) -> Finding | None:
    """Return what is wrong with the path, the folder or the owner of a unix socket. None: nothing."""
    if found.path_bytes > MAX_SOCKET_PATH_BYTES:
        return failure(
            f"the path has {found.path_bytes} bytes; the path of a socket has {MAX_SOCKET_PATH_BYTES} at most",
            "shorten it",
        )
    if found.folder_mode is None:
        return failure(f"there is no folder {found.folder}", f"mkdir {found.folder}, or mount a volume there")
    if not found.folder_is_writable:
        return failure(
            f"this user can't make a socket in {found.folder}",
            "give the folder to the depot's user (fsGroup, an initContainer's chown), or choose another",
        )
    if found.owner_error:
        return failure(found.owner_error, "set unix_socket_owner to numbers, which need no name")
    if found.folder_mode & _WRITABLE_BY_ALL and not found.folder_mode & _STICKY:
        return warning(f"every user can replace the socket in {found.folder}", f"chmod o-w {found.folder}, or chmod +t")
    return None
