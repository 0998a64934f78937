"""From a backend's name to its model worker.

Built-in workers are imported when they are first asked for. Others come from installed packages, by the entry
point group `prompt_scheduler.workers`: its value is a callable that takes an `EndpointConfig`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias, cast

from workers.base import EndpointConfig, ModelWorker
from workers.errors import UnknownBackend, WorkerConfigError

ENTRY_POINT_GROUP = "prompt_scheduler.workers"

_OURS = frozenset({"scheduler", "workers"})

WorkerFactory: TypeAlias = Callable[[EndpointConfig], ModelWorker]

_BUILT_IN = {
    "anthropic": "workers.anthropic:AnthropicWorker",
    "echo": "workers.echo:EchoWorker",
    "llama_cpp": "workers.llama_cpp:LlamaCppWorker",
    "openai": "workers.openai:OpenAIWorker",
    "vllm": "workers.vllm:VllmWorker",
}


def known_backends() -> tuple[str, ...]:
    """Names that `make_worker` accepts, in alphabetical order: the built-in and the installed ones."""
    return tuple(sorted(_BUILT_IN.keys() | entry_points(group=ENTRY_POINT_GROUP).names))


def make_worker(config: EndpointConfig) -> ModelWorker:
    """Make the model worker that `config.backend` names.

    Raises:
        UnknownBackend: there is none of that name.
        WorkerConfigError: the configuration does not suit it, or its package cannot be loaded.
    """
    worker = _factory(config.backend)(config)
    if not isinstance(worker, ModelWorker):
        raise WorkerConfigError(
            f"backend: {config.backend!r} made a {type(worker).__name__}, which is no ModelWorker"
        )
    return worker


def _factory(backend: str) -> WorkerFactory:
    # A built-in name cannot be taken over by a package that happens to be installed.
    if target := _BUILT_IN.get(backend):
        module, name = target.split(":")
        return cast("WorkerFactory", getattr(import_module(module), name))
    installed = entry_points(group=ENTRY_POINT_GROUP, name=backend)
    if not installed:
        raise UnknownBackend(_unknown(backend))
    return _load(next(iter(installed)))


def _load(entry_point: EntryPoint) -> WorkerFactory:
    try:
        return cast("WorkerFactory", entry_point.load())
    except Exception as error:
        package = entry_point.dist.name if entry_point.dist else "unknown"
        taken = entry_point.module.partition(".")[0]
        hint = f"; the name {taken!r} is prompt-scheduler's: rename that package" if taken in _OURS else ""
        raise WorkerConfigError(
            f"backend: {entry_point.name!r} ({entry_point.value} of package {package}) cannot be loaded: "
            f"{type(error).__name__}: {error}{hint}"
        ) from error


def _unknown(backend: str) -> str:
    known = known_backends()
    near = difflib.get_close_matches(backend.lower().replace("-", "_").replace(".", "_"), known, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    return (
        f"backend: no model worker is called {backend!r}; {hint} are {', '.join(known)}; "
        f"a package adds its own with the entry point group {ENTRY_POINT_GROUP}"
    )
