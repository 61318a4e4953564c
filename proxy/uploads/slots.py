"""Upload slots: what a client asks for and then sends its file to, at once or in parts.

Clients send the file without any credential, as they would to fal's signed URL; so the slot's id is the credential. It
is kept only as a hash, and never logged; fal's signed URL is kept sealed by it. Where the session may upload only so
many bytes, the id ends with that number, which the hash protects too.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from dataclasses import replace

from proxy.clock import Clock
from proxy.stores.uploads import Upload, UploadStore
from proxy.tenants.caller import Caller, Session, is_guest_name
from proxy.tenants.directory import Directory
from proxy.tenants.terms import Terms, add_session_limits
from proxy.uploads.part_attempts import no_such_upload
from proxy.uploads.sealing import seal, unseal
from proxy.uploads.transfer import UPLOAD_BYTES
from proxy.upstream.files import UploadDestination

SLOT_SECONDS = 900.0
#: Many parts take longer.
PARTS_SECONDS = 3600.0
_log = logging.getLogger(__name__)


class Slots:
    """Opens upload slots, and finds them again."""

    def __init__(self, uploads: UploadStore, directory: Directory, clock: Clock) -> None:
        self._uploads = uploads
        self._directory = directory
        self._clock = clock

    async def open(self, caller: Caller, destination: UploadDestination, content_type: str, *, in_parts: bool) -> str:
        """Open a slot that leads to a destination; return its id."""
        session = caller.session
        slot = secrets.token_urlsafe(32) + _format_limits(session)
        expires_at = self._clock.now() + (PARTS_SECONDS if in_parts else SLOT_SECONDS)
        if session is not None:
            expires_at = min(expires_at, session.owner_expires_at or session.expires_at)
        await self._uploads.add(
            Upload(
                id=_hash(slot),
                tenant=caller.tenant.id,
                subject=caller.subject,
                content_type=content_type,
                file_url=destination.file_url,
                upstream_url=seal(destination.upload_url, slot),
                max_bytes=caller.plan.uploads.max_bytes,
                expires_at=expires_at,
                plan=caller.lasting_plan,
                in_parts=in_parts,
                session_id=session.id if session else caller.key_id,
                issued_at=session.issued_at if session else None,
                newest_revocation=session.newest_revocation if session else None,
                tags=session.tags if session else (),
            )
        )
        return slot

    async def find(self, slot: str) -> tuple[Upload, Terms]:
        """Find the upload behind a slot, with its signed URL, and the terms that bind its owner.

        Raises:
            NotFound: there is none, or its time is over.
        """
        upload = await self._uploads.get(_hash(slot))
        snapshot = await self._directory.snapshot()
        tenant = snapshot.tenants.get(upload.tenant) if upload else None
        if upload is None or tenant is None:
            raise no_such_upload()
        plan_name = snapshot.plan_of(tenant, upload.subject, upload.plan)
        if plan_name not in snapshot.plans:
            raise no_such_upload()
        if upload.expires_at <= self._clock.now():
            raise no_such_upload()
        try:
            opened = replace(upload, upstream_url=unseal(upload.upstream_url, slot))
        except ValueError:
            _log.error("upload URL in the database damaged")
            raise no_such_upload() from None
        is_guest = is_guest_name(upload.subject)
        terms = snapshot.subject_terms(tenant, upload.subject, plan_name, is_guest=is_guest)
        limits = _parse_limits(slot)
        return opened, add_session_limits(terms, limits) if limits else terms


def _format_limits(session: Session | None) -> str:
    quotas = session.quotas if session else ()
    return "".join(f".{limit}" for unit, limit in quotas if unit == UPLOAD_BYTES)


def _parse_limits(slot: str) -> list[tuple[str, int]]:
    """Read the limits in the id of a slot that was found, so that they are as they were written."""
    return [(UPLOAD_BYTES, int(limit)) for limit in slot.split(".")[1:]]


def _hash(slot: str) -> str:
    return hashlib.sha256(slot.encode()).hexdigest()
