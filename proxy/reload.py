"""SIGHUP: read the plan file and the files of secrets again, and apply them while calls go on.

The environment of a process does not change, so what can have changed is what its variables point at: `PROXY_CONFIG`
and each `NAME_FILE`. All of it is applied, or, if anything is wrong, nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from proxy.auth.admin_token import AdminToken
from proxy.auth.sessions import Sessions
from proxy.calls.poll_cache import PollCache
from proxy.catalog import Catalog
from proxy.errors import ProxyError
from proxy.limits.stream_guard import StreamGuard
from proxy.settings import Settings, SettingsError
from proxy.telemetry.metrics import Metrics
from proxy.tenants.directory import Directory
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import PlanFile
from proxy.upstream.client import Upstream

_log = logging.getLogger(__name__)


class Reloader:
    """Applies the configuration again at each request.

    Args:
        read_settings: gives the settings as they are now, or raises a SettingsError.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        read_settings: Callable[[], Settings],
        directory: Directory,
        catalog: Catalog,
        upstream: Upstream,
        sessions: Sessions,
        admin_token: AdminToken,
        poll_cache: PollCache,
        stream_guard: StreamGuard,
        metrics: Metrics,
    ) -> None:
        self._started_with = settings
        self._current = settings
        self._read_settings = read_settings
        self._directory = directory
        self._catalog = catalog
        self._upstream = upstream
        self._sessions = sessions
        self._admin_token = admin_token
        self._poll_cache = poll_cache
        self._stream_guard = stream_guard
        self._metrics = metrics
        self._is_requested = False
        self._running: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Reload soon; a request during a reload makes another one follow."""
        self._is_requested = True
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._reload_while_requested())

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _reload_while_requested(self) -> None:
        while self._is_requested:
            self._is_requested = False
            outcome = "refused"
            try:
                await self._reload()
                outcome = "applied"
            except SettingsError as error:
                _log_problems(error.problems)
            except ProxyError as error:
                _log_problems([error.message])
            except Exception:
                _log.exception("configuration not reloaded")
            self._metrics.reloads.labels(outcome).inc()

    async def _reload(self) -> None:
        # In a thread: a plan file of many tenants takes a second to read.
        settings, file, catalog = await asyncio.to_thread(self._read)
        has_changed = settings.config_path is not None and await self._directory.apply(file)
        self._catalog.replace(catalog)
        replaced = self._replace_secrets(settings)
        fields = {"plans": "changed" if has_changed else "unchanged", "secrets": " ".join(replaced) or "unchanged"}
        _log.info("configuration reloaded", extra={"log_fields": fields})

    def _read(self) -> tuple[Settings, PlanFile, Catalog]:
        """Everything there is, or every problem."""
        problems: list[str] = []
        try:
            settings = self._read_settings()
        except SettingsError as error:
            problems += error.problems
        try:
            file, catalog = read_file(self._current.config_path)
        except SettingsError as error:
            problems += error.problems
        if problems:
            raise SettingsError(problems)
        return settings, file, catalog

    def _replace_secrets(self, new: Settings) -> list[str]:
        """Use the secrets of other settings from now on; the names of those that have changed."""
        old, replaced = self._current, list[str]()
        if new.fal.key != old.fal.key:
            self._upstream.replace_key(new.fal.key)
            replaced.append("FAL_KEY")
        if new.sessions.secrets != old.sessions.secrets:
            self._sessions.replace_secrets(new.sessions.secrets)
            # They are answered without a look at the token.
            self._poll_cache.clear()
            self._stream_guard.refuse_unsigned(self._sessions.is_signed)
            replaced.append("PROXY_SESSION_SECRETS")
        if new.sessions.admin_token != old.sessions.admin_token:
            self._admin_token.replace(new.sessions.admin_token)
            replaced.append("PROXY_ADMIN_TOKEN")
        for name, is_same in (
            ("PROXY_DATABASE_URL", new.stores.database_url == self._started_with.stores.database_url),
            ("PROXY_REDIS_URL", new.stores.redis_url == self._started_with.stores.redis_url),
        ):
            if not is_same:
                _log.warning("a changed setting needs a restart", extra={"log_fields": {"setting": name}})
        self._current = new
        return replaced


def _log_problems(problems: list[str]) -> None:
    for problem in problems:
        _log.error("configuration not reloaded", extra={"log_fields": {"problem": problem}})
