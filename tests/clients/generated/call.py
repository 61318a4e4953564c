"""Use the client of openapi-python-client: `call.py URL SESSION TENANT_KEY`; JSON to standard output."""

from __future__ import annotations

import json
import sys
from io import BytesIO

from fal_proxy_client import AuthenticatedClient
from fal_proxy_client.api.jobs import create_job, job_status, list_jobs
from fal_proxy_client.api.sessions import mint_session, who_am_i
from fal_proxy_client.api.uploads import upload
from fal_proxy_client.models import Job, Mint, NewJob, NewJobInput, Refusal, UploadFilesBody
from fal_proxy_client.types import File

url, session, tenant_key = sys.argv[1:]
PIXEL = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffd9")

caller = AuthenticatedClient(base_url=url, token=session)
backend = AuthenticatedClient(base_url=url, token=tenant_key)

wanted = NewJobInput.from_dict({"image_url": "data:image/png;base64,iVBORw0KGgo=", "prompt": "What is this?"})
created = create_job.sync(client=caller, body=NewJob(endpoint="fal-ai/llava-next", input_=wanted))
assert isinstance(created, Job), created
status = job_status.sync(created.id, client=caller)
listed = list_jobs.sync(client=caller, limit=1)
minted = mint_session.sync(client=backend, body=Mint(subject="generated"))
known = who_am_i.sync(client=AuthenticatedClient(base_url=url, token=minted.token))
refused = job_status.sync("never", client=caller)
assert isinstance(refused, Refusal), refused
sent = upload.sync(
    client=caller, body=UploadFilesBody(file=File(payload=BytesIO(PIXEL), file_name="a.jpg", mime_type="image/jpeg"))
)
print(
    json.dumps(
        {
            "created": created.id,
            "status": status.id,
            "listed": [job.id for job in listed.jobs],
            "submitted_at": listed.jobs[0].submitted_at.isoformat(),
            "subject": known.subject,
            "refused": refused.error_type,
            "size": sent.size,
        }
    )
)
