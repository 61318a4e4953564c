"""Proofs that another service verifies: Turnstile, hCaptcha and reCAPTCHA, which share the protocol siteverify.

The page shows the service's widget, which gives a token. The service says once whether the token is its own, and on
which host it was given. Without an answer of the service, no guest is let in.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from proxy.auth.tenant_secrets import TenantSecrets, report_unverified
from proxy.errors import ProofInvalid
from proxy.settings import Settings
from proxy.tenants.tiers import CAPTCHAS, VerifiedTier

if TYPE_CHECKING:
    import httpx

ANSWER_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024
#: Questions to one service at once: anyone can send a token, and a slow service must hold no more connections.
MOST_QUESTIONS = 50
#: What a service says if the tenant's secret is wrong or it fails itself; the guest's token may be right.
_NOT_THE_GUESTS = {"missing-input-secret", "invalid-input-secret", "sitekey-secret-mismatch", "internal-error"}
_CODE = re.compile(r"[a-z0-9-]{1,60}")


class Siteverify:
    """Asks the services.

    Args:
        ssl_context: what verifies their servers; httpx's by default, as for fal.
    """

    def __init__(self, settings: Settings, secrets: TenantSecrets, ssl_context: ssl.SSLContext | None = None) -> None:
        self._urls = settings.verifiers
        self._secrets = secrets
        self._ssl_context = ssl_context
        #: Each service has its own: one that does not answer holds up no other.
        self._turns = {kind: asyncio.Semaphore(MOST_QUESTIONS) for kind in CAPTCHAS}

    async def verify(self, tier: VerifiedTier, origin: str, value: str) -> str:
        """Verify a token of a page; a name for it, which no other has.

        Raises:
            ProofInvalid: it does not hold.
            ProofUnavailable: the service gives no valid answer.
        """
        try:
            form = {"secret": self._secrets.read(tier), "response": value}
            async with asyncio.timeout(ANSWER_SECONDS), self._turns[tier.proof]:
                result = await self._ask(getattr(self._urls, tier.proof), form)
            codes = _read_error_codes(result)
            if wrong := sorted(_NOT_THE_GUESTS.intersection(codes)):
                raise ValueError(f"the service says {wrong[0]}")
        except (OSError, ValueError) as problem:
            raise report_unverified(tier.proof, problem, f"{tier.proof} gives no valid answer") from None
        _check(tier, result, codes, origin)
        return hashlib.sha256(value.encode()).hexdigest()

    async def _ask(self, url: str, form: dict[str, str]) -> dict[str, Any]:
        import httpx

        try:
            async with self._open_client() as client:
                headers = {"accept": "application/json", "accept-encoding": "identity"}
                async with client.stream("POST", url, data=form, headers=headers) as answer:
                    body = await _read(answer)
        except httpx.HTTPError as problem:
            raise OSError(f"the question failed ({type(problem).__name__})") from None
        result = orjson.loads(body)
        if not isinstance(result, dict):
            raise ValueError("the answer is no JSON object")
        return result

    def _open_client(self) -> httpx.AsyncClient:
        # Imported here: reading the authorities of the system takes a while.
        import httpx

        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        return httpx.AsyncClient(verify=self._ssl_context, trust_env=False, follow_redirects=False, timeout=None)


async def _read(answer: httpx.Response) -> bytes:
    if answer.status_code != 200:
        raise ValueError(f"the answer is {answer.status_code}; it must be 200, and redirects are not followed")
    body = b""
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return body


def _read_error_codes(result: dict[str, Any]) -> list[str]:
    """Read the reasons of a refusal, as far as they can be shown."""
    listed = result.get("error-codes")
    found = listed if isinstance(listed, list) else []
    return [code for code in found[:10] if isinstance(code, str) and _CODE.fullmatch(code)]


def _check(tier: VerifiedTier, result: dict[str, Any], codes: list[str], origin: str) -> None:
    """Check what the service says of a token.

    Raises:
        ProofInvalid: it is not one of this page, or not for this purpose.
    """
    if result.get("success") is not True:
        raise ProofInvalid(f"The service refuses the proof ({', '.join(codes) or 'without a reason'}); get a new one.")
    if result.get("hostname") != urlsplit(origin).hostname:
        raise ProofInvalid("The proof was made on a page of another host.")
    if tier.action is not None and result.get("action") != tier.action:
        raise ProofInvalid("The proof was made for another action.")
    score = result.get("score")
    if tier.min_score is not None and not (isinstance(score, int | float) and score >= tier.min_score):
        raise ProofInvalid("The proof's score is too low.")
