"""The engines of the demo: the echo, or a llama-server or vLLM of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from scheduler.cli.demo.children import Child, child
from scheduler.cli.output import remark
from scheduler.errors import ConfigError
from workers.base import EndpointConfig
from workers.registry import make_worker

EXAMPLES = Path(__file__).parents[3] / "examples" / "engines"
MAKE_TINY_GGUF = EXAMPLES / "make_tiny_gguf.py"
MAKE_TINY_HF = EXAMPLES / "make_tiny_hf.py"
SERVE_VLLM = EXAMPLES / "serve_vllm.sh"
START_TIMEOUT_S = 60.0
VLLM_START_TIMEOUT_S = 300.0  # its imports alone take half a minute, longer on a busy machine
SLOTS = 16
PROMPTS_A_SLOT = 25
BUILT = Path("prompt-scheduler", "llama-server", "bin", "llama-server")
INSTALLED = Path("prompt-scheduler", "vllm", "bin", "python")
PARAMS = {"max_tokens": 128, "temperature": 0.8}


class EngineKind(StrEnum):
    """The engines to choose from."""

    ECHO = "echo"
    LLAMA = "llama"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class DemoEngine:
    """An engine that is ready."""

    model: str
    """The name of its route."""
    toml: str
    """The settings with its route."""
    params: dict[str, Any] = field(default_factory=dict)
    """The parameters for each prompt."""
    children: tuple[Child, ...] = ()
    """Its processes."""


def open_engine(
    kind: EngineKind, folder: Path, *, prompts: int, delay_s: float
) -> AbstractAsyncContextManager[DemoEngine]:
    """Start an engine. `delay_s` is the echo's time per word.

    Few of the `prompts` run at once, so that most are seen waiting.

    Raises:
        ConfigError: the engine or a model is missing.
    """
    at_once = prompts // PROMPTS_A_SLOT
    if kind is EngineKind.LLAMA:
        return _llama(folder, os.environ, at_once)
    return _vllm(folder, os.environ, at_once) if kind is EngineKind.VLLM else _echo(delay_s, at_once)


@asynccontextmanager
async def _echo(delay_s: float, at_once: int) -> AsyncIterator[DemoEngine]:
    toml = f"""
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = {at_once}
options = {{ first_delay_s = {delay_s}, delay_s = {delay_s} }}
"""
    yield DemoEngine("echo", toml)


@asynccontextmanager
async def _llama(folder: Path, environ: Mapping[str, str], at_once: int) -> AsyncIterator[DemoEngine]:
    binary = find_llama_server(environ)
    model = Path(environ["LLAMA_MODEL"]) if environ.get("LLAMA_MODEL") else await _tiny_model(folder)
    if not model.is_file():
        raise ConfigError(f"LLAMA_MODEL names {model}, which is not a file; without it a tiny model is made")
    remark("Starting llama-server; this takes some seconds")
    port = _free_port()
    flags = ("-c", "16384", "-np", str(SLOTS), "-t", "2", "--poll", "0", "--cache-ram", "0", "--no-ui")
    where = ("--host", "127.0.0.1", "--port", str(port), "--alias", "tiny")
    async with child("llama-server", binary, "-m", model, *where, *flags, folder=folder) as server:
        base_url = f"http://127.0.0.1:{port}"
        await _until_ready(server, "llama_cpp", base_url, START_TIMEOUT_S)
        yield DemoEngine("tiny", _route("llama_cpp", base_url, at_once), PARAMS, (server,))


@asynccontextmanager
async def _vllm(folder: Path, environ: Mapping[str, str], at_once: int) -> AsyncIterator[DemoEngine]:
    python = find_vllm(environ)
    model = folder / "tiny"
    remark("Making a tiny model and starting vLLM; this takes about a minute")
    async with child("model maker", python, MAKE_TINY_HF, model, folder=folder) as maker:
        if await maker.wait():
            raise maker.complaint("cannot make a tiny model:", ConfigError)
    port = _free_port()
    async with child("vLLM", "sh", SERVE_VLLM, python, model, str(port), folder=folder) as server:
        base_url = f"http://127.0.0.1:{port}"
        await _until_ready(server, "vllm", base_url, VLLM_START_TIMEOUT_S)
        yield DemoEngine("tiny", _route("vllm", base_url, at_once), PARAMS, (server,))


def _route(backend: str, base_url: str, at_once: int) -> str:
    return f"""
[[routes.tiny.endpoints]]
backend = "{backend}"
base_url = "{base_url}"
model = "tiny"
max_in_flight = {min(at_once, SLOTS)}
"""


def find_vllm(environ: Mapping[str, str]) -> Path:
    """The Python that has vLLM: the one that VLLM_PYTHON names, else the one that the Makefile installs.

    Raises:
        ConfigError: there is none, or the script that makes a model is missing.
    """
    if not SERVE_VLLM.is_file():
        raise ConfigError("--engine vllm: works only in a checkout of the project, which can make a model")
    if named := environ.get("VLLM_PYTHON"):
        if os.access(named, os.X_OK):
            return Path(named).absolute()
        problem = f"VLLM_PYTHON names {named}, which cannot be run"
    else:
        installed = _cache(environ) / INSTALLED
        if os.access(installed, os.X_OK):
            return installed
        problem = "VLLM_PYTHON is not set; it names the Python of an environment with vLLM"
    raise ConfigError(f"{problem}; `make demo ENGINE=vllm` installs one")


def _cache(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def find_llama_server(environ: Mapping[str, str]) -> Path:
    """The llama-server to run: named by LLAMA_SERVER, else on PATH, else built by the Makefile.

    Raises:
        ConfigError: there is none.
    """
    if named := environ.get("LLAMA_SERVER"):
        if os.access(named, os.X_OK):
            return Path(named).absolute()
        problem = f"LLAMA_SERVER names {named}, which cannot be run"
    else:
        if found := shutil.which("llama-server", path=environ.get("PATH")):
            return Path(found).absolute()
        built = _cache(environ) / BUILT
        if os.access(built, os.X_OK):
            return built
        problem = "LLAMA_SERVER is not set, and there is no llama-server on PATH"
    raise ConfigError(f"{problem}; in a checkout `make demo ENGINE=llama` builds one")


async def _tiny_model(folder: Path) -> Path:
    path = folder / "tiny.gguf"
    if not MAKE_TINY_GGUF.is_file():
        raise ConfigError("LLAMA_MODEL is not set; it names a model in the GGUF format")
    remark("Making a tiny model")
    async with child("model maker", sys.executable, MAKE_TINY_GGUF, path, folder=folder) as maker:
        if await maker.wait():
            raise maker.complaint("cannot make a tiny model; set LLAMA_MODEL instead:", ConfigError)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _until_ready(server: Child, backend: str, base_url: str, timeout_s: float) -> None:
    options = {"try_priority": False} if backend == "vllm" else {}
    worker = make_worker(EndpointConfig(backend=backend, base_url=base_url, options=options))
    ended = asyncio.create_task(server.wait())
    try:
        async with asyncio.timeout(timeout_s):
            while not (await worker.health()).ready:
                if ended.done():
                    raise await server.failed()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise server.complaint(f"{server.name} was not ready within {timeout_s:g} s:") from None
    finally:
        ended.cancel()
        await worker.aclose()
