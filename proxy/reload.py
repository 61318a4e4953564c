"""SIGHUP: read the plan file and the files of secrets again, and apply them while calls go on.

The environment of a process does not change, so what can have changed is what its variables point at: `PROXY_CONFIG`
and each `NAME_FILE`. All of it is applied, or, if anything is wrong, nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from proxy.catalog import Catalog
from proxy.errors import ProxyError
from proxy.routes.services import Services
from proxy.settings import Settings, SettingsError
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import PlanFile

_log = logging.getLogger(__name__)


class Reloader:
    """Applies the configuration again at each request.

    Args:
        read_settings: gives the settings as they are now, or raises a SettingsError.
    """

    def __init__(self, services: Services, read_settings: Callable[[], Settings]) -> None:
        self._services = services
        self._read_settings = read_settings
        self._current = services.settings
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
            self._services.metrics.reloads.labels(outcome).inc()

    async def _reload(self) -> None:
        # In a thread: a plan file of many tenants takes a second to read.
        settings, file, catalog = await asyncio.to_thread(self._read)
        has_changed = settings.config_path is not None and await self._services.directory.apply(file)
        self._services.catalog.replace(catalog)
        replaced = self._replace_secrets(settings)
        facts = {"plans": "changed" if has_changed else "unchanged", "secrets": " ".join(replaced) or "unchanged"}
        _log.info("configuration reloaded", extra={"facts": facts})

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
        services, old, replaced = self._services, self._current, []
        if new.fal.key != old.fal.key:
            services.upstream.replace_key(new.fal.key)
            replaced.append("FAL_KEY")
        if new.sessions.secrets != old.sessions.secrets:
            services.sessions.replace_secrets(new.sessions.secrets)
            # They are answered without a look at the token.
            services.poll_cache.clear()
            services.stream_guard.refuse_unsigned(services.sessions.is_signed)
            replaced.append("PROXY_SESSION_SECRETS")
        if new.sessions.admin_token != old.sessions.admin_token:
            services.admin_token.replace(new.sessions.admin_token)
            replaced.append("PROXY_ADMIN_TOKEN")
        for name, is_same in (
            ("PROXY_DATABASE_URL", new.stores.database_url == self._services.settings.stores.database_url),
            ("PROXY_REDIS_URL", new.stores.redis_url == self._services.settings.stores.redis_url),
        ):
            if not is_same:
                _log.warning("a changed setting needs a restart", extra={"facts": {"setting": name}})
        self._current = new
        return replaced


def _log_problems(problems: list[str]) -> None:
    for problem in problems:
        _log.error("configuration not reloaded", extra={"facts": {"problem": problem}})
