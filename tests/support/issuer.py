"""Identity providers of the tests: they sign tokens, and serve their keys over https with a certificate of our own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.servers import running

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encode(part: Any) -> str:
    return b64(part if isinstance(part, bytes) else json.dumps(part).encode())


@cache
def private_key(name: str, kind: str = "RSA") -> PrivateKey:
    """A key that lasts as long as the tests; `kind` is RSA, RSA-bits, Ed25519 or a curve."""
    if kind.startswith("RSA"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind.partition("-")[2] or 2048))
    return ed25519.Ed25519PrivateKey.generate() if kind == "Ed25519" else ec.generate_private_key(_CURVES[kind])


def public_jwk(key: PrivateKey, **more: Any) -> dict[str, Any]:
    """What a provider publishes of a key."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        fields = {"kty": "RSA", "n": b64(_to_bytes(numbers.n)), "e": b64(_to_bytes(numbers.e))}
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        point, size = key.public_key().public_numbers(), (key.curve.key_size + 7) // 8
        name = next(name for name, curve in _CURVES.items() if curve.name == key.curve.name)
        fields = {"kty": "EC", "crv": name, "x": b64(point.x.to_bytes(size)), "y": b64(point.y.to_bytes(size))}
    else:
        fields = {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().public_bytes_raw())}
    return {key: value for key, value in ({**fields, "use": "sig"} | more).items() if value is not None}


def _to_bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def signature(key: PrivateKey | bytes | None, algorithm: str, signed: bytes) -> bytes:
    """Sign as an algorithm says, with whatever key is given."""
    if key is None:
        return b""
    if isinstance(key, bytes):
        return hmac.digest(key, signed, f"sha{algorithm[2:]}")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(signed)
    hash_ = _HASHES[algorithm[2:]]
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hash_), hash_.digest_size)
        return key.sign(signed, pss if algorithm.startswith("PS") else padding.PKCS1v15(), hash_)
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hash_)))
    return r.to_bytes(size) + s.to_bytes(size)


def sign(header: Any, claims: Any, key: PrivateKey | bytes | None) -> str:
    """A JWT. Header and claims may be anything, also bytes that are no JSON."""
    signed = f"{encode(header)}.{encode(claims)}"
    algorithm = header.get("alg") if isinstance(header, dict) else None
    algorithm = algorithm if isinstance(algorithm, str) else "RS256"
    return f"{signed}.{b64(signature(key, algorithm, signed.encode()))}"


def respell(token: str) -> str:
    """The same token with another spelling of its signature, which a lax reader of base64 takes for the same."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


@dataclass
class KeyHost:
    """A server of key sets, and of what else a provider answers.

    Attributes:
        answers: what lies at each path: keys, or what answers a request.
        asked: how often each path was asked for.
    """

    url: str = ""
    answers: dict[str, list[dict[str, Any]] | Callable[[Request], Any]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def publish(self, name: str, *keys: Mapping[str, Any]) -> str:
        """Serve these keys; give their URL."""
        self.answers[name] = [dict(key) for key in keys]
        return f"{self.url}/{name}"

    async def answer(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.asked[name] = self.asked.get(name, 0) + 1
        found = self.answers.get(name, lambda _: Response(status_code=404))
        if isinstance(found, list):
            return Response(json.dumps({"keys": found}), media_type="application/json")
        answer = found(request)
        result: Response = await answer if asyncio.iscoroutine(answer) else answer
        return result


def issue_certificate(folder: Path) -> tuple[tuple[Path, Path], ssl.SSLContext]:
    """The chain and the key of a server on this machine, and what a client must trust, also as `ca.pem` in `folder`."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return (chain, key), trust


@contextlib.contextmanager
def key_host(folder: Path) -> Iterator[tuple[KeyHost, ssl.SSLContext]]:
    """A server of key sets on this machine, and what a client must trust to ask it, also as `ca.pem` in `folder`."""
    certificate, trust = issue_certificate(folder)
    host = KeyHost()
    app = Starlette(routes=[Route("/{name:path}", host.answer, methods=["GET", "POST"])])
    with running(app, certificate=certificate) as url:
        host.url = url
        yield host, trust
