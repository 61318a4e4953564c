"""SIGHUP: read the plan file and the files of secrets again, and apply them while calls go on.

The environment of a process does not change, so what can have changed is what its variables point at: `PROXY_CONFIG`
and each `NAME_FILE`. All of it is applied, or, if anything is wrong, nothing. A warning names what needs a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from proxy.auth.admin_tokens import AdminTokens
from proxy.auth.sessions import Sessions
from proxy.calls.poll_cache import PollCache
from proxy.catalog import Catalog
from proxy.clock import Clock
from proxy.errors import ProxyError
from proxy.limits.stream_guard import StreamGuard
from proxy.settings import VARIABLES, Settings, SettingsError, existing_file
from proxy.stores.audit import Author, Change
from proxy.stores.audit_store import AuditStore
from proxy.telemetry.metrics import Metrics
from proxy.tenants.directory import Directory
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import PlanFile
from proxy.upstream.client import Upstream
from proxy.upstream.platform import FalPlatform

#: What is applied while the process runs; everything else needs a restart.
APPLIED = frozenset(
    {"FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_USAGE_KEY", "PROXY_SESSION_SECRETS", "PROXY_ADMIN_TOKEN"}
)
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
        platform: FalPlatform,
        sessions: Sessions,
        admin_tokens: AdminTokens,
        poll_cache: PollCache,
        stream_guard: StreamGuard,
        metrics: Metrics,
        audit: AuditStore,
        clock: Clock,
    ) -> None:
        self._started_with = settings
        self._current = settings
        self._read_settings = read_settings
        self._directory = directory
        self._catalog = catalog
        self._upstream = upstream
        self._platform = platform
        self._sessions = sessions
        self._admin_tokens = admin_tokens
        self._poll_cache = poll_cache
        self._stream_guard = stream_guard
        self._metrics = metrics
        self._audit = audit
        self._clock = clock
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
        author = Author.of_process("server:reload", self._clock.now())
        has_changed = self._started_with.config_path is not None and await self._directory.apply(file, by=author)
        self._catalog.replace(catalog)
        replaced = _changed_secrets(self._current, settings)
        await self._audit.record(author, *(Change("secret.replace", target=name) for name in replaced))
        self._replace_secrets(settings, replaced)
        fields = {"plans": "changed" if has_changed else "unchanged", "secrets": " ".join(replaced) or "unchanged"}
        _log.info("configuration reloaded", extra={"log_fields": fields})

    def _read(self) -> tuple[Settings, PlanFile, Catalog]:
        """Read the settings, the plan file and the catalogue.

        Raises:
            SettingsError: with every problem in any of them.
        """
        problems: list[str] = []
        try:
            settings = self._read_settings()
        except SettingsError as error:
            problems += error.problems
        path = self._started_with.config_path
        try:
            file, catalog = read_file(None if path is None else existing_file(str(path)))
        except SettingsError as error:
            problems += error.problems
        except ValueError:
            pass  # No file to read, such as a pipe that nothing ends: among the problems of the settings already.
        if problems:
            raise SettingsError(problems)
        return settings, file, catalog

    def _replace_secrets(self, new: Settings, names: list[str]) -> None:
        """Use the secrets of these names from the new settings from now on."""
        if "FAL_KEY" in names:
            self._upstream.replace_key(new.fal.key)
        if "FAL_USAGE_KEY" in names:
            self._platform.replace_key(new.fal.usage_key)
        if "PROXY_SESSION_SECRETS" in names:
            self._sessions.replace_secrets(new.sessions.secrets)
            # They are answered without a look at the token.
            self._poll_cache.clear()
            self._stream_guard.refuse_unsigned(self._sessions.is_signed)
        if "PROXY_ADMIN_TOKEN" in names:
            self._admin_tokens.replace_setting(new.sessions.admin_token)
        for name in _find_unapplied(self._started_with, new):
            _log.warning("a changed setting needs a restart", extra={"log_fields": {"setting": name}})
        self._current = new


def _changed_secrets(old: Settings, new: Settings) -> list[str]:
    """List the secrets that differ and can be replaced while the process runs, by name."""
    pairs = {
        "FAL_KEY": (old.fal.key, new.fal.key),
        "FAL_USAGE_KEY": (old.fal.usage_key, new.fal.usage_key),
        "PROXY_SESSION_SECRETS": (old.sessions.secrets, new.sessions.secrets),
        "PROXY_ADMIN_TOKEN": (old.sessions.admin_token, new.sessions.admin_token),
    }
    return [name for name, (before, after) in pairs.items() if before != after]


def _find_unapplied(running: Settings, new: Settings) -> list[str]:
    """List the variables that have changed and that a running process cannot apply."""
    changed = [name for name in VARIABLES if new.texts.get(name) != running.texts.get(name)]
    if new.server.console is not running.server.console:
        # If it is unset, the first admin token opens the console, and the last one closes it.
        changed.append("PROXY_CONSOLE")
    return sorted({*changed} - APPLIED)


def _log_problems(problems: list[str]) -> None:
    for problem in problems:
        _log.error("configuration not reloaded", extra={"log_fields": {"problem": problem}})
