"""Files with certificates that a setting names, and those of the authorities that the system trusts."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

#: Where systems keep the certificates of all authorities in one file: Debian and Alpine, Red Hat, SUSE, BSD and macOS.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def find_authorities() -> str | None:
    """Find the file with the certificates that the system trusts, `SSL_CERT_FILE` first; None if there is none."""
    return next(filter(os.path.isfile, filter(None, (ssl.get_default_verify_paths().cafile, *_BUNDLES))), None)


def check_files(files: Mapping[str, str]) -> None:
    """Load the files of a connection to PostgreSQL, by the names of libpq's parameters.

    Raises:
        ValueError: one is no PEM file of its kind, or a key does not belong to its certificate; the text says which.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, content in (("sslrootcert", "certificate"), ("sslcrl", "revocation list")):
        if name in files:
            try:
                context.load_verify_locations(cafile=files[name])
            except OSError:
                raise ValueError(f"has a file in {name} that holds no {content} in PEM, or cannot be read") from None
    if "sslcert" in files and "sslkey" in files:
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(files["sslcert"], files["sslkey"], files.get("sslpassword", ""))
        except OSError:
            raise ValueError("has a sslcert and a sslkey that do not belong together or cannot be read") from None
