"""Why TLS with a depot fails: makes the handshake with the credentials of a command, and says what is wrong."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing
from typing import Any

from kvdepot.cli.address import Tcp
from kvdepot.cli.cause import Cause
from kvdepot.cli.probe import Answer, connect, preface_answer, why_not_grpc
from kvdepot.credentials import Credentials

HANDSHAKE_SECONDS = 2.0

# Numbers of OpenSSL (x509_vfy.h), which Python passes on without names.
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAMES = (62, 64)  # of a host, of an IP address
_PARTIAL_CHAIN, _NO_TIME_CHECK = 0x80000, 0x200000
_DATE = "%Y-%m-%d %H:%M UTC"


def speaks_tls(place: Tcp) -> bool:
    """Return whether the peer answers a TLS handshake, whatever it wants of its clients."""
    connection = connect(place)
    if isinstance(connection, Cause):
        return False
    with connection:
        return isinstance(_handshake(connection, place, _unverified()), ssl.SSLSocket)


def why_no_tls(connection: socket.socket, place: Tcp, credentials: Credentials) -> Cause | None:
    """Return why a handshake over a new connection does not lead to a depot. None: it does."""
    context = _context(credentials)
    if isinstance(context, Cause):
        return context
    shaken = _handshake(connection, place, context, credentials.server_name)
    if isinstance(shaken, ssl.SSLSocket):
        with shaken:
            return _why_not_taken(shaken, credentials)
    if isinstance(shaken, ssl.SSLCertVerificationError):
        return _why_not_trusted(shaken, place, credentials)
    return _why_no_handshake(shaken, place)


def _context(credentials: Credentials) -> ssl.SSLContext | Cause:
    """Return a context with the credentials' files, or why they can't be used."""
    context = _unverified()
    if credentials.ca_file is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(credentials.ca_file)
        except OSError as error:
            return _bad_file(f"--tls-ca {credentials.ca_file}", "no certificate", error)
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    if credentials.certificate_file is not None and credentials.key_file is not None:
        try:
            context.load_cert_chain(credentials.certificate_file, credentials.key_file, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = f"--tls-key {credentials.key_file} does not belong to --tls-cert"
                return Cause(problem, "give the key with which the certificate was made")
            return _bad_file("--tls-cert or --tls-key", "no certificate or no key without a password", error)
        except (OSError, ValueError) as error:
            return _bad_file("--tls-cert or --tls-key", "no key without a password", error)
    return context


def _no_password() -> str:
    """Refuse to ask for a password at the terminal."""
    raise ValueError("the key has a password")


def _bad_file(name: str, lacks: str, error: Exception) -> Cause:
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return Cause(f"{name}: {error.strerror}", "name a file that this user may read")
    return Cause(f"{name} has {lacks} in it", "give a file in PEM, which has lines like -----BEGIN CERTIFICATE-----")


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _handshake(
    connection: socket.socket, place: Tcp, context: ssl.SSLContext, server_name: str = ""
) -> ssl.SSLSocket | OSError:
    """Return the connection with TLS, or the error that ends the handshake."""
    connection.settimeout(HANDSHAKE_SECONDS)
    try:
        return context.wrap_socket(connection, server_hostname=server_name or place.host)
    except (OSError, ValueError) as error:
        return error if isinstance(error, OSError) else OSError(str(error))


def _why_no_handshake(error: OSError, place: Tcp) -> Cause | None:
    """Return why the peer did not finish a handshake."""
    if isinstance(error, TimeoutError):
        return why_not_grpc(Answer.SILENCE)
    connection = connect(place)
    if isinstance(connection, Cause):
        return connection
    with connection:
        answer = preface_answer(connection)
    if answer is Answer.HTTP2:
        return Cause(
            "the depot speaks without TLS, and this command asked for TLS",
            "leave out --tls-… and KVDEPOT_CLIENT_TLS_…, or start the depot with --tls-cert and --tls-key",
        )
    if answer in (Answer.HTTP1, Answer.SILENCE):
        return why_not_grpc(answer)
    if isinstance(error, ssl.SSLError) and error.reason:
        reason = error.reason.replace("_", " ").lower()
        return Cause(f"TLS fails: {reason}", "the depot's log may say more; is there a proxy between it and here?")
    return why_not_grpc(Answer.CLOSED if answer is Answer.TLS else answer)


def _why_not_trusted(error: ssl.SSLCertVerificationError, place: Tcp, credentials: Credentials) -> Cause:
    """Return what is wrong with the depot's certificate."""
    shown = _shown_certificate(place)
    if error.verify_code in _OTHER_NAMES:
        names = [value for _, value in shown.get("subjectAltName", ())] or _common_names(shown.get("subject", ()))
        wanted = credentials.server_name or place.host
        return Cause(
            f"the depot's certificate is not for {wanted}; the names in it are {', '.join(names) or 'unknown'}",
            f"if it is the right depot, give --tls-server-name {names[0] if names else 'NAME'}",
        )
    if error.verify_code == _EXPIRED:
        ended = _moment(shown.get("notAfter"))
        if ended is not None and ended < time.time():
            return Cause(
                f"the depot's certificate has expired: it was valid until {time.strftime(_DATE, time.gmtime(ended))}",
                "renew it; the depot takes a new file without a restart",
            )
        return Cause("a certificate of the depot's authority has expired", "renew it, here and at the depot")
    if error.verify_code == _NOT_YET_VALID:
        begin = _moment(shown.get("notBefore"))
        since = time.strftime(_DATE, time.gmtime(begin)) if begin is not None else "later"
        return Cause(f"the depot's certificate is not valid before {since}", "is this host's clock right?")
    authority = " ".join(_common_names(shown.get("issuer", ()))) or "unknown"
    if credentials.ca_file is None:
        return Cause(
            f"the depot's certificate is signed by '{authority}', which this system does not trust",
            "give --tls-ca FILE, the authority that signed the depot's certificate",
        )
    return Cause(
        f"the depot's certificate is signed by '{authority}', which is not in {credentials.ca_file}",
        "give the authority that signed the depot's certificate with --tls-ca",
    )


def _why_not_taken(shaken: ssl.SSLSocket, credentials: Credentials) -> Cause | None:
    """Return why a peer with a good certificate does not serve.

    With TLS 1.3 the peer looks at the client's certificate after the client has finished the handshake.
    """
    try:
        answer = preface_answer(shaken)
    except ssl.SSLError as error:
        return _client_certificate_refused(credentials, error.reason or "")
    if answer is Answer.CLOSED:
        return _client_certificate_refused(credentials, "")
    return why_not_grpc(answer)


def _client_certificate_refused(credentials: Credentials, alert: str) -> Cause:
    if credentials.certificate_file is None:
        return Cause(
            "the depot asks for a client's certificate, and none was given", "give --tls-cert FILE and --tls-key FILE"
        )
    if "EXPIRED" in alert:
        return Cause(f"the client's certificate {credentials.certificate_file} has expired", "renew it")
    return Cause(
        f"the depot does not accept the client's certificate {credentials.certificate_file}",
        "it must be valid today, and signed by an authority in the depot's tls_client_ca",
    )


def _shown_certificate(place: Tcp) -> dict[str, Any]:
    """Return the fields of the peer's certificate. Its signature is not checked. Empty: it could not be read.

    Python shows the fields only of a certificate that it trusts. So this trusts the one that it was shown.
    """
    first = connect(place)
    if isinstance(first, Cause):
        return {}
    with first:
        shaken = _handshake(first, place, _unverified())
        if not isinstance(shaken, ssl.SSLSocket):
            return {}
        with closing(shaken):
            shown = shaken.getpeercert(binary_form=True)
    second = connect(place)
    if shown is None or isinstance(second, Cause):
        return {}
    with second:
        context = _unverified()
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= _PARTIAL_CHAIN | _NO_TIME_CHECK
        context.load_verify_locations(cadata=shown)
        trusted = _handshake(second, place, context)
        if not isinstance(trusted, ssl.SSLSocket):
            return {}
        with closing(trusted):
            fields: dict[str, Any] = dict(trusted.getpeercert() or {})
            return fields


def _common_names(name: Any) -> list[str]:
    return [value for part in name for key, value in part if key == "commonName"]


def _moment(text: str | None) -> int | None:
    return ssl.cert_time_to_seconds(text) if text else None
