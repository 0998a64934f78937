"""Watches the settings file and gives changed settings to the running engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from scheduler.engine.engine import Engine
from scheduler.errors import ConfigError
from scheduler.logs import change_level, traced
from scheduler.settings import Settings

logger = logging.getLogger(__name__)

LOOK_S = 1.0

_Stamp: TypeAlias = tuple[int, int, int] | None


class SettingsReloader:
    """Reloads the settings when their file changes, or when told to by `reload_soon()`.

    Invalid settings change nothing: the reason is logged. `load` reads the settings again. `start()`
    and `stop()` are safe to call twice.
    """

    def __init__(self, engine: Engine, load: Callable[[], Settings], path: Path | None) -> None:
        self._engine = engine
        self._load = load
        self._path = path
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stamp = self._last_look = self._look()

    def reload_soon(self) -> None:
        """Reload even if the file has not changed. Environment variables keep their values from the start."""
        self._wanted.set()

    async def start(self) -> None:
        """Start watching."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="settings")

    async def stop(self) -> None:
        """Stop watching, after finishing a reload in progress."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await self._wait()
            await asyncio.shield(asyncio.ensure_future(self._reload()))

    async def _wait(self) -> None:
        """Wait until a reload is wanted, or the file's time, size or inode changes (symlinks followed)."""
        while not self._wanted.is_set():
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wanted.wait()
            except TimeoutError:
                if self.has_settled():
                    return
        self._wanted.clear()
        self._stamp = self._look()

    def has_settled(self) -> bool:
        """Whether the file has changed, and has been stable since the last call: it might be half written."""
        stamp = self._look()
        settled = stamp is not None and stamp != self._stamp and stamp == self._last_look
        self._last_look = stamp
        if settled:
            self._stamp = stamp
        return settled

    def _look(self) -> _Stamp:
        try:
            found = self._path.stat() if self._path else None
        except OSError:
            return None  # being replaced, or gone: the settings in use stay valid
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None

    async def _reload(self) -> None:
        try:
            settings = await asyncio.to_thread(self._load)
            if self._engine.settings.configured_routes and not settings.configured_routes:
                raise ConfigError("routes: the file no longer has any; is it complete?")
            before = self._engine.settings
            if settings == before:
                logger.info("settings reloaded: nothing has changed")
                return
            await self._engine.reload(settings)
        except ConfigError as error:
            logger.error("settings not reloaded, the old ones stay: %s", error)
        except Exception as error:
            logger.error("settings not reloaded, the old ones stay", exc_info=traced(error, logger))
        else:
            if settings.log_level != before.log_level:
                change_level(settings.log_level)
            logger.info("settings reloaded; serving %s", ", ".join(self._engine.routes))
