"""The engines of the demo: the echo, a local model, or a llama-server or vLLM of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from scheduler.cli.cache import user_cache
from scheduler.cli.children import Child, child
from scheduler.cli.local_model import LocalModelName, open_local_model
from scheduler.cli.model_servers import until_healthy
from scheduler.cli.output import console, remark
from scheduler.errors import ConfigError
from scheduler.redis_server.supervisor import free_port
from scheduler.settings import EndpointSettings, RouteSettings

EXAMPLES = Path(__file__).parents[3] / "examples" / "engines"
MAKE_TINY_HF = EXAMPLES / "make_tiny_hf.py"
SERVE_VLLM = EXAMPLES / "serve_vllm.sh"
START_TIMEOUT_S = 60.0
VLLM_START_TIMEOUT_S = 300.0  # its imports alone take half a minute, longer on a busy machine
SLOTS = 16
PROMPTS_A_SLOT = 25
INSTALLED = Path("vllm", "bin", "python")
PARAMS = {"max_tokens": 128, "temperature": 0.8}
LOCAL_PARAMS = {"max_tokens": 48}


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
    route: RouteSettings
    """The route to it."""
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
    options = {"first_delay_s": delay_s, "delay_s": delay_s}
    endpoint = EndpointSettings(backend="echo", max_in_flight=at_once, options=options)
    yield DemoEngine("echo", RouteSettings(endpoints=[endpoint]))


def _llama(folder: Path, environ: Mapping[str, str], at_once: int) -> AbstractAsyncContextManager[DemoEngine]:
    own = find_llama_server(environ)
    return _own_llama(folder, *own, at_once) if own else _local_model(at_once)


@asynccontextmanager
async def _local_model(at_once: int) -> AsyncIterator[DemoEngine]:
    async with open_local_model(LocalModelName.SMOLLM2, console(stderr=True)) as server:
        yield DemoEngine(server.model.name, server.route(at_once), LOCAL_PARAMS, (server.process,))


@asynccontextmanager
async def _own_llama(folder: Path, binary: Path, model: Path, at_once: int) -> AsyncIterator[DemoEngine]:
    remark("Starting llama-server; this takes some seconds")
    port = free_port()
    flags = ("-c", "16384", "-np", str(SLOTS), "-t", "2", "--poll", "0", "--no-ui")
    where = ("--host", "127.0.0.1", "--port", str(port), "--alias", "tiny")
    async with child("llama-server", binary, "-m", model, *where, *flags, folder=folder) as server:
        base_url = f"http://127.0.0.1:{port}"
        await until_healthy(server, "llama_cpp", base_url, START_TIMEOUT_S)
        yield DemoEngine("tiny", _route("llama_cpp", base_url, at_once), PARAMS, (server,))


@asynccontextmanager
async def _vllm(folder: Path, environ: Mapping[str, str], at_once: int) -> AsyncIterator[DemoEngine]:
    python = find_vllm(environ)
    model = folder / "tiny"
    remark("Making a tiny model and starting vLLM; this takes about a minute")
    async with child("model maker", python, MAKE_TINY_HF, model, folder=folder) as maker:
        if await maker.wait():
            raise maker.complaint("cannot make a tiny model:", ConfigError)
    port = free_port()
    async with child("vLLM", "sh", SERVE_VLLM, python, model, str(port), folder=folder) as server:
        base_url = f"http://127.0.0.1:{port}"
        await until_healthy(server, "vllm", base_url, VLLM_START_TIMEOUT_S)
        yield DemoEngine("tiny", _route("vllm", base_url, at_once), PARAMS, (server,))


def _route(backend: str, base_url: str, at_once: int) -> RouteSettings:
    endpoint = EndpointSettings(
        backend=backend, base_url=base_url, model="tiny", max_in_flight=min(at_once, SLOTS)
    )
    return RouteSettings(endpoints=[endpoint])


def find_vllm(environ: Mapping[str, str]) -> Path:
    """The Python that has vLLM: the one that VLLM_PYTHON names, else the one that the Makefile installs.

    Raises:
        ConfigError: there is none, or the script that makes a model is missing, or there is no cache folder.
    """
    if not SERVE_VLLM.is_file():
        raise ConfigError("--engine vllm: works only in a checkout of the project, which can make a model")
    if named := environ.get("VLLM_PYTHON"):
        if os.access(named, os.X_OK):
            return Path(named).absolute()
        problem = f"VLLM_PYTHON names {named}, which cannot be run"
    else:
        installed = user_cache(environ) / INSTALLED
        if os.access(installed, os.X_OK):
            return installed
        problem = "VLLM_PYTHON is not set; it names the Python of an environment with vLLM"
    raise ConfigError(f"{problem}; `make demo ENGINE=vllm` installs one")


def find_llama_server(environ: Mapping[str, str]) -> tuple[Path, Path] | None:
    """The llama-server that LLAMA_SERVER names, and the model that LLAMA_MODEL names; None without either.

    Raises:
        ConfigError: one of them is missing.
    """
    server, model = environ.get("LLAMA_SERVER"), environ.get("LLAMA_MODEL")
    if not server and not model:
        return None
    neither = "; without both variables, a small model and a server are fetched"
    if not server or not model:
        missing = "LLAMA_MODEL, which names a model in the GGUF format," if server else "LLAMA_SERVER"
        raise ConfigError(f"{missing} is not set{neither}")
    if not os.access(server, os.X_OK):
        raise ConfigError(f"LLAMA_SERVER names {server}, which cannot be run{neither}")
    if not Path(model).is_file():
        raise ConfigError(f"LLAMA_MODEL names {model}, which is not a file{neither}")
    return Path(server).absolute(), Path(model).absolute()
