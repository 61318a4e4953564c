"""The stand-in for Apple's App Attest: an authority of its own, and keys that it attests for any app.

GET /_sandbox/app-attest/root          the certificate of its root, for `root_file`
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

KIND = "app_attest"
ENVIRONMENTS = {"production": b"appattest" + bytes(7), "development": b"appattestdevelop"}
_NONCE_EXTENSION = x509.ObjectIdentifier("1.2.840.113635.100.8.2")
_NONCE_PREFIX = bytes.fromhex("3024a1220420")
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Attestation:
    """What a device sends; a test changes one part of it."""

    certificates: tuple[x509.Certificate, ...]
    data: bytes
    key_id: bytes
    format: str = "apple-appattest"

    def encode(self, challenge: str) -> str:
        """Encode the proof as the proxy takes it."""
        import cbor2

        chain = [one.public_bytes(Encoding.DER) for one in self.certificates]
        document = {"fmt": self.format, "attStmt": {"x5c": chain, "receipt": b"receipt"}, "authData": self.data}
        return f"{challenge}.{b64encode(self.key_id).decode()}.{b64encode(cbor2.dumps(document)).decode()}"


class AppAttest:
    """An authority. Its keys come from its name, so that a root that was saved serves after a restart."""

    def __init__(self, name: str = "sandbox") -> None:
        self._name = name

    def routes(self) -> list[Route]:
        return [Route("/app-attest/root", self.show_root)]

    async def show_root(self, _: Request) -> Response:
        return Response(self.root_pem, media_type="application/x-pem-file")

    @property
    def root_pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    def give(self, wanted: Mapping[str, Any]) -> str:
        """Attest a fresh key of an app.

        Raises:
            ValueError: the wish is not complete.
        """
        app, challenge = wanted.get("app"), wanted.get("challenge")
        if not (isinstance(app, str) and isinstance(challenge, str)):
            raise ValueError("name an app (its team and bundle) and a challenge, as texts")
        environment = ENVIRONMENTS.get(str(wanted.get("environment", "production")))
        if environment is None:
            raise ValueError(f"the environment must be one of {', '.join(ENVIRONMENTS)}")
        return self.attest(app, challenge, environment=environment).encode(challenge)

    def attest(self, app: str, challenge: str, *, environment: bytes = ENVIRONMENTS["production"]) -> Attestation:
        """Attest a fresh key of an app."""
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        key_id = hashlib.sha256(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()
        app_hash = hashlib.sha256(app.encode()).digest()
        data = app_hash + b"\x40" + bytes(4) + environment + b"\x00\x20" + key_id + b"\xa0"
        nonce = hashlib.sha256(data + hashlib.sha256(challenge.encode()).digest()).digest()
        return Attestation((self.certify(key, nonce), self.intermediate), data, key_id)

    def certify(self, key: ec.EllipticCurvePublicKey, nonce: bytes, *, days: int = 3) -> x509.Certificate:
        """Make the certificate of a key, which holds a nonce."""
        extension = x509.UnrecognizedExtension(_NONCE_EXTENSION, _NONCE_PREFIX + nonce)
        builder = self._certificate("key", key, self.intermediate.subject, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return builder.add_extension(extension, critical=False).sign(self._key_of("intermediate"), hashes.SHA256())

    @cached_property
    def root(self) -> x509.Certificate:
        return self._authority("root", "root")

    @cached_property
    def intermediate(self) -> x509.Certificate:
        return self._authority("intermediate", "root")

    def _authority(self, role: str, issuer: str) -> x509.Certificate:
        public, signer = self._key_of(role).public_key(), self._key_of(issuer)
        builder = self._certificate(role, public, self._name_of(issuer), 3650)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(issued_by, critical=False)
        return builder.add_extension(_KEY_USAGE, critical=True).sign(signer, hashes.SHA384())

    def _certificate(
        self, role: str, key: ec.EllipticCurvePublicKey, issuer: x509.Name, days: int
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(issuer, self._name_of(role), key, x509.random_serial_number())
        return builder.not_valid_before(now - _DAY).not_valid_after(now + days * _DAY)

    def _key_of(self, role: str) -> ec.EllipticCurvePrivateKey:
        secret = hashlib.sha256(f"{self._name} {role}".encode()).digest()
        return ec.derive_private_key(int.from_bytes(secret), ec.SECP384R1())

    def _name_of(self, role: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self._name} {role}")])


_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
