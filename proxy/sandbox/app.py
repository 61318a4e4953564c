"""The sandbox as one application: fal's four hosts by path prefix, and the control routes.

    /run/…    fal.run            /rest/…   rest.fal.ai
    /queue/…  queue.fal.run      /cdn/…    v3.fal.media
    /api/…    api.fal.ai
    /_sandbox/…                  the request log, faults, timing and jobs: see `control`; proofs of guests: see `proofs`

A prompt can choose the pace and the faults of its own job: see `directives`, `timing` and `faults`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router

from proxy.sandbox.auth import KeyCheck, UnwantedHeaders
from proxy.sandbox.cdn import Cdn
from proxy.sandbox.control import Control
from proxy.sandbox.faults import Fault, Faulty
from proxy.sandbox.platform import Platform
from proxy.sandbox.proofs import Proofs
from proxy.sandbox.queue import Queue
from proxy.sandbox.replies import reply
from proxy.sandbox.request_log import Recording
from proxy.sandbox.rest import Rest
from proxy.sandbox.runner import Runner
from proxy.sandbox.state import SandboxState
from proxy.sandbox.timing import Timing
from proxy.sandbox.webhooks import Webhooks

#: What the sandbox takes for a FAL_KEY by default. It opens nothing else.
SANDBOX_KEY = "sandbox-key-id:sandbox-key-secret"
#: What it takes for a FAL_USAGE_KEY.
SANDBOX_ADMIN_KEY = "sandbox-admin-id:sandbox-admin-secret"


def create_sandbox(*, key: str = SANDBOX_KEY, timing: Timing | None = None, base_url: str | None = None) -> Starlette:
    """Build a sandbox.

    Args:
        key: the only `FAL_KEY` that it accepts.
        timing: how fast jobs go; can be changed later.
        base_url: what the URLs in its answers begin with; without one, the address that the caller used.
    """
    sandbox = SandboxState(key, timing or Timing(), base_url)
    webhooks = Webhooks()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await sandbox.close()

    def faults_of_job(id: str) -> tuple[Fault, ...]:
        job = sandbox.jobs.get(id)
        return job.faults if job else ()

    app = Starlette(
        routes=[
            _host("/run", Runner(sandbox).routes()),
            _host("/queue", Queue(sandbox, webhooks).routes()),
            _host("/rest", Rest(sandbox, webhooks).routes()),
            _host("/cdn", Cdn(sandbox).routes()),
            _host("/api", Platform(sandbox).routes()),
            _host("/_sandbox", [*Control(sandbox).routes(), *Proofs().routes()]),
        ],
        middleware=[
            Middleware(Recording, request_log=sandbox.request_log),
            Middleware(UnwantedHeaders),
            Middleware(Faulty, faults=sandbox.faults, faults_of_job=faults_of_job),
            Middleware(KeyCheck, key=key, admin_key=SANDBOX_ADMIN_KEY),
        ],
        exception_handlers={HTTPException: _refusal},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _host(prefix: str, routes: list[Route]) -> Mount:
    # fal never redirects to add or drop a slash, and a redirect would hide that a proxy sent the wrong path.
    return Mount(prefix, app=Router(routes, redirect_slashes=False))


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return reply({"detail": error.detail}, error.status_code, error.headers)
