"""From a backend's name to its worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, Protocol, runtime_checkable

import pytest

import workers.registry
from workers import (
    EndpointConfig,
    GenerationWorker,
    Health,
    Load,
    ModelWorker,
    UnknownBackend,
    WorkerConfigError,
    known_backends,
    make_worker,
)
from workers.contract import ModelWorkerContract
from workers.echo import EchoWorker
from workers.llama_cpp import LlamaCppWorker
from workers.registry import Registry


def install(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    group = workers.registry.GENERATION.group
    installed = EntryPoints(EntryPoint(name, value, group) for name, value in values.items())
    monkeypatch.setattr(workers.registry, "entry_points", installed.select)


def make_installed(config: EndpointConfig) -> GenerationWorker:
    return EchoWorker(config)


def make_nothing(config: EndpointConfig) -> None:
    return None


async def test_built_in_workers_are_made_by_name() -> None:
    assert isinstance(make_worker(EndpointConfig("echo")), EchoWorker)
    llama = make_worker(EndpointConfig("llama_cpp", "http://127.0.0.1:1"))
    assert isinstance(llama, LlamaCppWorker)
    await llama.aclose()


def test_installed_worker_is_made_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine=f"{__name__}:make_installed")
    assert isinstance(make_worker(EndpointConfig("mine")), EchoWorker)
    assert known_backends() == ("anthropic", "echo", "llama_cpp", "mine", "openai", "vllm")


def test_package_cannot_take_over_a_built_in_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, echo=f"{__name__}:make_nothing")
    assert isinstance(make_worker(EndpointConfig("echo")), EchoWorker)


@pytest.mark.parametrize("name", ["llama-cpp", "llama.cpp", "Llama_Cpp", "llamacpp"])
def test_near_miss_gets_a_suggestion(name: str) -> None:
    with pytest.raises(UnknownBackend, match="did you mean 'llama_cpp'"):
        make_worker(EndpointConfig(name, "http://127.0.0.1:1"))


def test_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(UnknownBackend, match=r"there are anthropic, echo, llama_cpp, openai, vllm;"):
        make_worker(EndpointConfig("zzz"))


@pytest.mark.parametrize("value", ["no.such.module:make", f"{__name__}:no_such_name"])
def test_package_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install(monkeypatch, mine=value)
    with pytest.raises(WorkerConfigError, match=r"'mine' .* cannot be loaded"):
        make_worker(EndpointConfig("mine"))


def test_package_that_takes_our_name_is_told_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine="workers.of_mine:make")
    with pytest.raises(WorkerConfigError, match="the name 'workers' is prompt-scheduler's"):
        make_worker(EndpointConfig("mine"))


def test_what_is_no_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mine=f"{__name__}:make_nothing")
    with pytest.raises(WorkerConfigError, match="type NoneType, which is not a GenerationWorker"):
        make_worker(EndpointConfig("mine"))


class Ranker:
    """A model worker of another kind of work: it puts texts in order."""

    async def rank(self, texts: Sequence[str]) -> list[str]:
        return sorted(texts)

    async def health(self) -> Health:
        return Health(ready=True)

    async def capacity(self) -> int | None:
        return None

    async def load(self) -> Load | None:
        return None

    async def aclose(self) -> None:
        pass


@runtime_checkable
class RankingWorker(ModelWorker, Protocol):
    async def rank(self, texts: Sequence[str]) -> list[str]: ...


RANKING = Registry(
    RankingWorker,  # type: ignore[type-abstract]  # it is only checked against
    group="prompt_scheduler.workers.ranking",
    built_in={"by_name": f"{__name__}:make_ranker", "echo": "workers.echo:EchoWorker"},
)


def make_ranker(config: EndpointConfig) -> Ranker:
    return Ranker()


class TestRanker(ModelWorkerContract):
    """What every model worker promises holds for another kind of work as it is."""

    @pytest.fixture
    def worker(self) -> RankingWorker:
        return RANKING.make(EndpointConfig("by_name"))


async def test_each_kind_of_work_has_backends_of_its_own() -> None:
    assert RANKING.backends() == ("by_name", "echo")
    assert await RANKING.make(EndpointConfig("by_name")).rank(["b", "a"]) == ["a", "b"]
    assert "by_name" not in known_backends()


def test_worker_of_another_kind_of_work_is_refused() -> None:
    with pytest.raises(WorkerConfigError, match="type EchoWorker, which is not a RankingWorker"):
        RANKING.make(EndpointConfig("echo"))


def test_key_is_in_no_repr() -> None:
    assert "sk-secret" not in repr(EndpointConfig("echo", api_key="sk-secret"))


def loaded_after(statement: str) -> set[str]:
    command = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_no_adapter_and_no_http_client() -> None:
    loaded = loaded_after("import workers")
    assert "workers.registry" in loaded
    assert not loaded & {"workers.llama_cpp", "workers.echo", "httpx", "pytest"}


@pytest.mark.parametrize("module", ["workers.echo", "workers.llama_cpp"])
def test_workers_stand_on_their_own(module: str) -> None:
    loaded: Any = loaded_after(f"import {module}")
    assert not loaded & {"scheduler", "redis", "arq", "pytest"}
