"""The proxies that are compared, each started as in production, on the core it is given."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import ROOT, running
from tests.support.servers import free_port

OFFICIAL = Path(__file__).with_name("official")
NODE_HOME = ROOT / ".tools" / "bench"
OURS = "fal-proxy"
#: Every kind of limit, each too high to be reached.
EVERYTHING_ON = """\
    rate_limits: {ip: 9000000/minute, session: 9000000/minute, subject: 9000000/minute, tenant: 9000000/minute}
    poll_limits: {session: 9000000/minute}
    concurrency: {subject: 9000000, tenant: 9000000}
    max_tokens: 256
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
plans:
  bench:
    endpoints: [fal-ai/llavav15-13b, fal-ai/llava-next, fal-ai/llava-llama3-8b-v11]
    session_ttl_seconds: 86400
{limits}
tenants:
  - {{id: bench, plan: bench}}
"""


@dataclass(frozen=True)
class Contestant:
    """A running proxy: its `process`, the `url` of its route, and the bearer `token` that its callers send."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    token: str


@contextlib.contextmanager
def fal_proxy(
    upstream: str,
    core: int,
    folder: Path,
    *,
    name: str = OURS,
    limits: str = EVERYTHING_ON,
    stores: Mapping[str, str] | None = None,
) -> Iterator[Contestant]:
    """This proxy with everything on: session, policy, limits, the ledger in a SQLite file, access log.

    `stores` are the settings of another database and of Redis.
    """
    port = free_port()
    folder = folder / name.replace(" ", "-")
    folder.mkdir()
    config = folder / "plans.yaml"
    config.write_text(PLAN_FILE.format(limits=limits))
    env = {
        "FAL_KEY": "bench:bench",
        **{f"FAL_{host}_URL": f"{upstream}/{host.lower()}" for host in ("RUN", "QUEUE", "REST", "CDN")},
        "PROXY_PORT": str(port),
        "PROXY_CONFIG": str(config),
        "PROXY_DATABASE_URL": f"sqlite:///{folder / 'bench.db'}",
        "PROXY_SESSION_SECRETS": "a-secret-of-the-benchmark-with-32-bytes-and-more",
        **(stores or {}),
    }
    command = [sys.executable, "-m", "proxy"]
    subprocess.run([*command, "migrate"], cwd=ROOT, env={**os.environ, **env}, capture_output=True, check=True)
    with running([*command, "serve"], port=port, core=core, env=env, log=folder / "fal-proxy.log") as process:
        mint = [*command, "sessions", "mint", "--tenant", "bench", "--subject", "bench", "--ttl", "86400"]
        minted = subprocess.run(mint, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=True)
        yield Contestant(name, process, f"http://127.0.0.1:{port}/api/fal/proxy", minted.stdout.strip())


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
