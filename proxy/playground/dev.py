"""The commands for trying things out: the sandbox alone, and the sandbox, the proxy and the page in one process."""

from __future__ import annotations

import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import uvicorn

from proxy.app import create_app
from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.drain import Drain
from proxy.playground.demo import Demo, demo_of_fal, demo_of_sandbox
from proxy.playground.introduction import Trial, introduce
from proxy.playground.registry import RunningDev, register
from proxy.playground.tenant_key import tenant_key
from proxy.redaction import Redactor
from proxy.sandbox import captchas
from proxy.sandbox.app import SANDBOX_ADMIN_KEY, SANDBOX_KEY, create_sandbox
from proxy.server.draining import DrainingServer
from proxy.server.open_files import raise_file_limit
from proxy.server.operations import OperationsListener, bind_operations
from proxy.server.options import uvicorn_options
from proxy.settings import Settings, SettingsError, is_loopback, read
from proxy.telemetry.logs import configure_logging
from proxy.tenants.plan_file import read_file

DEMO_SUBJECT = "developer"
#: A Ctrl-C ends at once.
DRAIN_SECONDS = 2
_SANDBOX_KEYS = {"FAL_KEY": SANDBOX_KEY, "FAL_USAGE_KEY": SANDBOX_ADMIN_KEY}
#: Connections stay open as long as fal's do: a proxy must not meet one that is just being closed.
_SANDBOX_OPTIONS: dict[str, Any] = {
    "host": "127.0.0.1",
    "access_log": False,
    "ws": "none",
    "timeout_keep_alive": 75,
}


def run_sandbox(port: int) -> None:
    """Serve the stand-in for fal until a signal comes."""
    base = f"http://127.0.0.1:{port}"
    for name, url in _sandbox_urls(base).items():
        print(f"{name}={url}")
    for name, key in _SANDBOX_KEYS.items():
        print(f"{name}={key}", flush=True)
    uvicorn.run(create_sandbox(), port=port, log_level="warning", **_SANDBOX_OPTIONS)


def run_dev(
    environ: Mapping[str, str], *, takes_guests: bool = False, proves_work: bool = False, exposes: bool = False
) -> None:
    """Serve everything until a signal comes. With a FAL_KEY in the environment, call fal instead of the sandbox.

    Calls of fal itself cost money. So there the demo tenant has a quota, and no guests unless `takes_guests`, and
    other machines can reach the proxy only if `exposes`. With `proves_work`, guests solve a challenge first.

    Raises:
        SettingsError: what the environment says cannot be used.
    """
    # uvicorn raises the signal again once it has stopped: as an exception, it lets the folder below be removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    has_key = any(environ.get(name) for name in ("FAL_KEY", "FAL_KEY_FILE", "FAL_KEY_ID", "FAL_KEY_ID_FILE"))
    with tempfile.TemporaryDirectory(prefix="fal-proxy-") as folder:
        defaults = _defaults(Path(folder))
        if has_key:
            settings = read(_overlay(defaults, environ), dev=True)
            if not exposes:
                _check_loopback(settings.server.host)
            with _beside(settings, defaults):
                demo = demo_of_fal(settings, takes_guests=takes_guests, proves_work=proves_work)
                _serve(settings, demo, defaults["PROXY_ADMIN_TOKEN"])
            return
        with _sandbox() as sandbox_environ:
            settings = read(_overlay(_overlay(defaults, environ), sandbox_environ), dev=True)
            with _beside(settings, defaults):
                _serve(settings, demo_of_sandbox(settings, proves_work=proves_work), defaults["PROXY_ADMIN_TOKEN"])


def _beside(settings: Settings, defaults: Mapping[str, str]) -> AbstractContextManager[object]:
    """Let commands find the database, if it is the one that lasts as long as the process."""
    database_url = settings.stores.database_url.reveal()
    if database_url != defaults["PROXY_DATABASE_URL"]:
        return nullcontext()
    return register(RunningDev(settings.server.public_url, database_url, str(Path.cwd())))


def _check_loopback(host: str) -> None:
    """Refuse an address at which others can spend what the key pays for."""
    if not is_loopback(host):
        raise SettingsError(
            [
                f"PROXY_HOST: others can reach {host}, and their calls cost your fal key money; "
                "leave it out for 127.0.0.1, or say --yes-expose"
            ]
        )


def _defaults(folder: Path) -> dict[str, str]:
    """Make settings that last as long as the process, so that trying the proxy needs no setup."""
    return {
        "PROXY_SESSION_SECRETS": secrets.token_urlsafe(48),
        "PROXY_ADMIN_TOKEN": secrets.token_urlsafe(32),
        "PROXY_DATABASE_URL": f"sqlite:///{folder / 'dev.db'}",
        "PROXY_LOG_FORMAT": "text",
    }


def _overlay(below: Mapping[str, str], above: Mapping[str, str]) -> dict[str, str]:
    """Lay one environment over another. A secret replaces the one below, in a variable or in a file."""
    above = {name: value for name, value in above.items() if value.strip()}
    replaced = {name.removesuffix("_FILE") for name in above}
    return {name: value for name, value in below.items() if name.removesuffix("_FILE") not in replaced} | above


@contextmanager
def _sandbox() -> Iterator[dict[str, str]]:
    """Run the sandbox on a free port, in a thread; yield the settings that point at it."""
    config = uvicorn.Config(create_sandbox(), port=0, log_config=None, **_SANDBOX_OPTIONS)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield {**_sandbox_urls(f"http://127.0.0.1:{port}"), **_SANDBOX_KEYS}
    finally:
        server.should_exit = True
        thread.join(timeout=5)


def _sandbox_urls(base: str) -> dict[str, str]:
    """List the settings that name the sandbox's hosts, and the verifiers that it stands in for."""
    hosts = {f"FAL_{name}_URL": f"{base}/{name.lower()}" for name in ("RUN", "QUEUE", "REST", "CDN", "API")}
    services = {f"PROXY_{kind.upper()}_URL": f"{base}/_sandbox/siteverify/{kind}" for kind in captchas.KINDS}
    return hosts | services | {"PROXY_APP_CHECK_URL": f"{base}/_sandbox/app-check/jwks"}


def _serve(settings: Settings, demo: Demo, made_admin_token: str) -> None:
    configure_logging(settings.log, Redactor(settings.secrets))
    file = read_file(settings.config_path)[0] if settings.config_path else demo.file
    notes = "" if settings.config_path else demo.notes
    if not file.tenants:
        raise SettingsError(["PROXY_CONFIG: names no tenant to try things out as"])
    tenant = file.tenants[0].id
    ttl = file.plans[file.tenants[0].plan].session_ttl_seconds
    token, _ = Sessions(settings.sessions.secrets, SystemClock()).mint(tenant, DEMO_SUBJECT, ttl)
    app = create_app(settings, plan_file=file, drain=Drain(DRAIN_SECONDS))
    raise_file_limit()
    config = uvicorn.Config(app, **uvicorn_options(settings))
    with tenant_key(settings, file, tenant) as key, suppress(KeyboardInterrupt):
        trial = Trial(tenant, session=token, tenant_key=key, made_admin_token=made_admin_token)
        words = introduce(trial, settings, demo.upstream, notes)
        _AnnouncingServer(config, _bind_operations(settings), words).run()


def _bind_operations(settings: Settings) -> OperationsListener | None:
    try:
        return bind_operations(settings.server)
    except OSError as problem:
        raise SettingsError([f"PROXY_OPS_PORT: the address cannot be bound ({problem.strerror})"]) from None


class _AnnouncingServer(DrainingServer):
    """Prints the introduction as soon as it serves."""

    def __init__(self, config: uvicorn.Config, operations: OperationsListener | None, words: str) -> None:
        super().__init__(config, operations)
        self._words = words

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._words, flush=True)
