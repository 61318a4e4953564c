"""The certificate of a deployment."""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import SplitResult

from proxy.cli.doctor.findings import FAIL, OK, WARN, Finding

TIMEOUT_SECONDS = 10.0
#: Certificates are renewed long before.
DAYS_LEFT = 14
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_tls(url: SplitResult, context: ssl.SSLContext) -> Finding:
    """Look at the certificate as a client does that trusts the authorities of this machine."""
    host = url.hostname or ""
    if url.scheme == "http":
        level = OK if host in _LOOPBACK else WARN
        advice = "" if level == OK else "Use https: sessions cross the network in clear, and browsers keep no cookie."
        return Finding("tls", level, "plain http", advice)
    try:
        with (
            socket.create_connection((host, url.port or 443), timeout=TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            certificate, version = secured.getpeercert(), secured.version()
    except ssl.SSLCertVerificationError as problem:
        advice = "Serve the whole chain of a certificate that clients trust, for this name."
        return Finding("tls", FAIL, f"the certificate is not trusted: {problem.verify_message}", advice)
    except OSError as problem:
        advice = "Check the address, the port, and that TLS ends there."
        return Finding("tls", FAIL, f"no TLS connection ({type(problem).__name__})", advice)
    days = int((ssl.cert_time_to_seconds(str((certificate or {})["notAfter"])) - time.time()) // 86_400)
    message = f"{version}, the certificate is valid for {days} days"
    if days < DAYS_LEFT:
        return Finding("tls", WARN, message, "Renew the certificate, and check why this has not happened by itself.")
    return Finding("tls", OK, message)
