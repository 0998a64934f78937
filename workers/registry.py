"""From a backend's name to its model worker, for each kind of work.

Built-in workers are imported on first use. Others come from installed packages, by an entry point whose value
is a callable that takes an `EndpointConfig`. Each kind of work has its own registry with its own group of
entry points, so a backend can have one adapter for each kind.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from workers.base import EndpointConfig, GenerationWorker, ModelWorker
from workers.embedding import EmbeddingWorker
from workers.errors import UnknownBackend, WorkerConfigError
from workers.rerank import RerankWorker

_OURS = frozenset({"scheduler", "workers"})

WorkerT = TypeVar("WorkerT", bound=ModelWorker)


class Registry(Generic[WorkerT]):
    """The backends that do one kind of work.

    `port` is the protocol of their workers, `group` the entry point group of installed packages, and
    `built_in` maps the names of our own backends to `module:name`. `does` says in errors what they do.
    """

    def __init__(
        self, port: type[WorkerT], *, group: str, built_in: Mapping[str, str], does: str = ""
    ) -> None:
        self.group = group
        self._does = does
        self._port = port
        self._built_in = built_in

    def backends(self) -> tuple[str, ...]:
        """The names of all backends, in alphabetical order: the built-in and the installed ones."""
        return tuple(sorted(self._built_in.keys() | entry_points(group=self.group).names))

    def make(self, config: EndpointConfig) -> WorkerT:
        """Make the model worker that `config.backend` names.

        Raises:
            UnknownBackend: there is no backend of that name.
            WorkerConfigError: the configuration does not suit it, or its package cannot be loaded.
        """
        worker = self._factory(config.backend)(config)
        if not isinstance(worker, self._port):
            raise WorkerConfigError(
                f"backend: {config.backend!r} made an object of type {type(worker).__name__}, "
                f"which is not a {self._port.__name__}"
            )
        return worker

    def _factory(self, backend: str) -> Callable[[EndpointConfig], Any]:
        # A built-in name cannot be taken over by a package that happens to be installed.
        if target := self._built_in.get(backend):
            module, name = target.split(":")
            return cast("Callable[[EndpointConfig], Any]", getattr(import_module(module), name))
        installed = entry_points(group=self.group, name=backend)
        if not installed:
            raise UnknownBackend(self._unknown(backend))
        return _load(next(iter(installed)))

    def _unknown(self, backend: str) -> str:
        known = self.backends()
        near = difflib.get_close_matches(backend.lower().replace("-", "_").replace(".", "_"), known, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        return (
            f"backend: no model worker{self._does} is called {backend!r}; {hint} are {', '.join(known)}; "
            f"a package adds its own with the entry point group {self.group}"
        )


GENERATION = Registry(
    GenerationWorker,  # type: ignore[type-abstract]  # a port is a protocol; it is only checked against
    group="prompt_scheduler.workers",
    built_in={
        "anthropic": "workers.anthropic:AnthropicWorker",
        "echo": "workers.echo:EchoWorker",
        "llama_cpp": "workers.llama_cpp:LlamaCppWorker",
        "openai": "workers.openai:OpenAIWorker",
        "vllm": "workers.vllm:VllmWorker",
    },
)
"""The backends that generate text."""

EMBEDDING = Registry(
    EmbeddingWorker,  # type: ignore[type-abstract]  # as above
    group="prompt_scheduler.embedding_workers",
    built_in={
        "echo": "workers.echo_kinds:EchoEmbeddingWorker",
        "llama_cpp": "workers.llama_cpp_kinds:LlamaCppEmbeddingWorker",
        "openai": "workers.openai_kinds:OpenAIEmbeddingWorker",
        "vllm": "workers.vllm_kinds:VllmEmbeddingWorker",
    },
    does=" that embeds",
)
"""The backends that turn text into vectors."""

RERANK = Registry(
    RerankWorker,  # type: ignore[type-abstract]  # as above
    group="prompt_scheduler.rerank_workers",
    built_in={
        "echo": "workers.echo_kinds:EchoRerankWorker",
        "llama_cpp": "workers.llama_cpp_kinds:LlamaCppRerankWorker",
        "openai": "workers.openai_kinds:OpenAIRerankWorker",
        "vllm": "workers.vllm_kinds:VllmRerankWorker",
    },
    does=" that reranks",
)
"""The backends that order documents by their relevance to a query."""


def known_backends() -> tuple[str, ...]:
    """The names that `make_worker` accepts, in alphabetical order: the built-in and the installed ones."""
    return GENERATION.backends()


def make_worker(config: EndpointConfig) -> GenerationWorker:
    """Make the model worker that `config.backend` names.

    Raises:
        UnknownBackend: there is no backend of that name.
        WorkerConfigError: the configuration does not suit it, or its package cannot be loaded.
    """
    return GENERATION.make(config)


def _load(entry_point: EntryPoint) -> Callable[[EndpointConfig], Any]:
    try:
        return cast("Callable[[EndpointConfig], Any]", entry_point.load())
    except Exception as error:
        package = entry_point.dist.name if entry_point.dist else "unknown"
        taken = entry_point.module.partition(".")[0]
        hint = f"; the name {taken!r} is prompt-scheduler's: rename that package" if taken in _OURS else ""
        raise WorkerConfigError(
            f"backend: {entry_point.name!r} ({entry_point.value} of package {package}) cannot be loaded: "
            f"{type(error).__name__}: {error}{hint}"
        ) from error
