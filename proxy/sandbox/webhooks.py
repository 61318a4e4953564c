"""Webhooks, signed as fal signs them. Delivered to the loopback only: this is a sandbox."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from proxy.sandbox.jobs import Job
from proxy.sandbox.pictures import is_loopback

TRIES = 3
SECONDS_BETWEEN_TRIES = 0.2
SECONDS_FOR_ANSWER = 15.0
USER_ID = "sandbox-user"


class Webhooks:
    """Delivers results, signed with a key of its own that is made when the sandbox starts."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    def jwks(self) -> dict[str, Any]:
        """Return the public key, as `/.well-known/jwks.json` shows it."""
        public = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).decode().rstrip("=")
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "sandbox", "use": "sig", "x": public}]}

    async def deliver(self, job: Job, url: str) -> None:
        """Wait for the job, then post its result; any 2xx is thanks enough, anything else means another try."""
        answer = await job.wait_for_answer()
        if not is_loopback(urlsplit(url).hostname or ""):
            return
        message: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id, "payload": answer.body}
        message |= {"status": "OK"} if answer.error is None else {"status": "ERROR", "error": answer.error}
        body = orjson.dumps(message)
        async with httpx.AsyncClient(trust_env=False, timeout=SECONDS_FOR_ANSWER) as client:
            for _ in range(TRIES):
                if await _is_taken(client, url, body, self._sign_headers(job.id, body)):
                    return
                await asyncio.sleep(SECONDS_BETWEEN_TRIES)

    def _sign_headers(self, request_id: str, body: bytes) -> dict[str, str]:
        at = str(int(time.time()))
        text = "\n".join((request_id, USER_ID, at, hashlib.sha256(body).hexdigest()))
        return {
            "content-type": "application/json",
            "x-fal-webhook-request-id": request_id,
            "x-fal-webhook-user-id": USER_ID,
            "x-fal-webhook-timestamp": at,
            "x-fal-webhook-signature": self._key.sign(text.encode()).hex(),
        }


async def _is_taken(client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        return (await client.post(url, content=body, headers=headers)).is_success
    except httpx.HTTPError:
        return False
