"""The proxies that are compared, each started as in production, on the core it is given."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.bench.processes import ROOT, environment, running
from tests.support.secrets import SECRET
from tests.support.servers import free_port

OFFICIAL = Path(__file__).with_name("official")
NODE_HOME = ROOT / ".tools" / "bench"
OURS = "fal-proxy"
#: Every kind of limit, each too high to be reached.
EVERYTHING_ON = """\
    rate_limits: {ip: 9000000/minute, session: 9000000/minute, subject: 9000000/minute, tenant: 9000000/minute}
    poll_limits: {session: 9000000/minute}
    concurrency: {subject: 1000000, tenant: 1000000}
    max_tokens: 256
    alerts: [50, 80, 100]
    quotas:
      - {per: subject, unit: requests, limit: 900000000, window: day}
      - {per: tenant, unit: tokens, limit: 900000000000, window: month}
      - {per: tenant, unit: usd, limit: 900000000, window: month}
"""
#: Sessions, policy and ownership only.
LIMITS_OFF = """\
    rate_limits: {ip: null, session: null, subject: null, tenant: null}
    poll_limits: {session: null}
    concurrency: {subject: null, tenant: null}
"""
PLAN_FILE = """\
endpoints:
  - {{id: fal-ai/llavav15-13b, price_per_compute_second: 0.0006}}
  - {{id: fal-ai/llava-next, price_per_compute_second: 0.0006}}
  - {{id: fal-ai/llava-llama3-8b-v11, price_per_compute_second: 0.0006}}
plans:
  bench:
    endpoints: [fal-ai/llavav15-13b, fal-ai/llava-next, fal-ai/llava-llama3-8b-v11]
    session_ttl_seconds: 86400
{limits}
tenants:
  - {{id: bench, plan: bench, identity: {identity}}}
"""
#: The tokens of this issuer count as sessions do.
IDENTITY = {"issuer": "https://identity.bench.example/", "audience": "bench"}
#: The allocator's variables, as the image sets them.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": "8388608",
    "MALLOC_TOP_PAD_": "1048576",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
}

#: It does not look for it in the PATH of everyone.
NGINX_PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or "nginx"
NGINX = """\
daemon off;
master_process off;
pid %(folder)s/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %(folder)s/nginx-body;
  proxy_temp_path %(folder)s/nginx-proxy;
  fastcgi_temp_path %(folder)s/nginx-fastcgi;
  uwsgi_temp_path %(folder)s/nginx-uwsgi;
  scgi_temp_path %(folder)s/nginx-scgi;
  keepalive_requests 100000000;
  upstream fal { server %(upstream)s; keepalive 64; keepalive_requests 100000000; }
  map $http_x_fal_target_url $path {
    ~^https://queue\\.fal\\.run(?<queue_path>/.*)$ /queue$queue_path;
    ~^https://fal\\.run(?<run_path>/.*)$ /run$run_path;
  }
  server {
    listen 127.0.0.1:%(port)s;
    location = /api/fal/proxy {
      proxy_pass http://fal$path;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Key bench:bench";
      proxy_set_header x-fal-target-url "";
    }
  }
}
"""


@dataclass(frozen=True)
class Contestant:
    """A running proxy: its `process`, the `url` of its route, and the bearer `token` that its callers send.

    `ready_seconds` is what it took from the command to the first good answer, where that was looked at.
    """

    name: str
    process: subprocess.Popen[bytes]
    url: str
    token: str
    ready_seconds: float = 0.0


@contextlib.contextmanager
def fal_proxy(
    upstream: str,
    core: int,
    folder: Path,
    *,
    name: str = OURS,
    limits: str = EVERYTHING_ON,
    stores: Mapping[str, str] | None = None,
    keys: Mapping[str, Any] | None = None,
    checkout: Path = ROOT,
) -> Iterator[Contestant]:
    """This proxy with everything on: session, policy, limits, the ledger in a SQLite file, access log.

    `stores` are the settings of another database and of Redis, `keys` the key set of `IDENTITY`. `checkout` is where
    its code and its `.venv` are.
    """
    port = free_port()
    folder = folder / name.replace(" ", "-")
    folder.mkdir()
    config = folder / "plans.yaml"
    identity = json.dumps([IDENTITY | {"jwks": keys}] if keys else [])
    config.write_text(PLAN_FILE.format(limits=limits, identity=identity))
    env = {
        **ALLOCATOR,
        "FAL_KEY": "bench:bench",
        **{f"FAL_{host}_URL": f"{upstream}/{host.lower()}" for host in ("RUN", "QUEUE", "REST", "CDN")},
        "PROXY_PORT": str(port),
        "PROXY_CONFIG": str(config),
        "PROXY_DATABASE_URL": f"sqlite:///{folder / 'bench.db'}",
        "PROXY_SESSION_SECRETS": SECRET,
        **(stores or {}),
    }
    python = sys.executable if checkout == ROOT else str(checkout / ".venv" / "bin" / "python")
    command = [python, "-m", "proxy"]
    subprocess.run([*command, "migrate"], cwd=checkout, env=environment(env), capture_output=True, check=True)
    log = folder / "fal-proxy.log"
    with contextlib.ExitStack() as stack:
        # Before the start: to make one takes a twentieth of a second.
        client = stack.enter_context(httpx.Client(trust_env=False, timeout=60))
        started = time.perf_counter()
        process = stack.enter_context(
            running([*command, "serve"], port=port, core=core, env=env, log=log, folder=checkout)
        )
        client.get(f"http://127.0.0.1:{port}/readyz").raise_for_status()
        ready_seconds = time.perf_counter() - started
        mint = [*command, "sessions", "mint", "--tenant", "bench", "--subject", "bench", "--ttl", "86400"]
        minted = subprocess.run(mint, cwd=checkout, env=environment(env), capture_output=True, text=True, check=True)
        yield Contestant(name, process, f"http://127.0.0.1:{port}/api/fal/proxy", minted.stdout.strip(), ready_seconds)


@contextlib.contextmanager
def official(framework: str, upstream: str, core: int, folder: Path) -> Iterator[Contestant]:
    """@fal-ai/server-proxy on `hono` or `express`."""
    install_official()
    port = free_port()
    command = ["node", "serve.mjs", framework, str(port), upstream]
    env = {"FAL_KEY": "bench:bench", "NODE_ENV": "production"}
    log = folder / f"official-{framework}.log"
    with running(command, port=port, core=core, env=env, log=log, folder=NODE_HOME) as process:
        yield Contestant(f"official, {framework}", process, f"http://127.0.0.1:{port}/api/fal/proxy", "none")


@contextlib.contextmanager
def nginx(upstream: str, core: int, folder: Path) -> Iterator[Contestant]:
    """nginx as a plain reverse proxy: the upper bound of what a proxy can reach."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX % {"folder": folder, "port": port, "upstream": upstream.removeprefix("http://")})
    command = [NGINX_PROGRAM, "-c", str(config), "-e", str(folder / "nginx-error.log")]
    with running(command, port=port, core=core, log=folder / "nginx.log") as process:
        yield Contestant("nginx", process, f"http://127.0.0.1:{port}/api/fal/proxy", "none")


def install_official() -> None:
    """Install the official proxy below .tools, again only when what is wanted has changed."""
    NODE_HOME.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path.read_bytes() for path in OFFICIAL.iterdir()}
    present = {name: (NODE_HOME / name).read_bytes() for name in wanted if (NODE_HOME / name).exists()}
    for name, content in wanted.items():
        (NODE_HOME / name).write_bytes(content)
    if present.get("package-lock.json") != wanted["package-lock.json"] or not (NODE_HOME / "node_modules").exists():
        # The optional peers (Next, Remix, Svelte) are not needed.
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-progress"],
            cwd=NODE_HOME,
            check=True,
            stdout=sys.stderr,
        )
