"""Embeddings and rerank on real engines, with a real sentence encoder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from scheduler import EmbeddingRequest, Embeddings, JobFailed, load_settings
from scheduler.redis_server.supervisor import free_port
from scheduler.testing import local_scheduler
from tests.engines.conftest import (
    ENGINES,
    SERVE_VLLM,
    START_TIMEOUT_S,
    VLLM_START_TIMEOUT_S,
    cached,
    missing,
    wait_until_ready,
)
from workers import EmbeddingTask, EndpointConfig, ModelNotFound, RerankTask
from workers.kinds_contract import EmbeddingContract, RerankContract
from workers.registry import EMBEDDING, RERANK
from workers.vectors import to_floats

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]  # whoever is first waits for the server

MAKE_GGUF = ENGINES / "make_minilm_gguf.py"
TEXTS = ("The cat sat on the mat.", "A kitten rested on the rug.", "Stock prices fell again.")
SLOTS = 4


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The sentence encoder, in the form of Hugging Face."""
    path = cached("minilm", "model")
    return (
        path if path.is_dir() else missing("no all-MiniLM-L6-v2: run `make test-engines`, which fetches it")
    )


def product(one: Sequence[float], other: Sequence[float]) -> float:
    """The dot product; the cosine of vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


class LlamaServers:
    """Servers of the encoder as GGUF; all are killed at the end."""

    def __init__(self, binary: Path, model: Path, folder: Path) -> None:
        self._binary, self._model, self._folder = binary, model, folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *flags: str, make: tuple[str, ...] = ()) -> str:
        """Start a server, and return its URL."""
        file, log, port = self._folder / f"{name}.gguf", self._folder / f"{name}.log", free_port()
        command = [sys.executable, str(MAKE_GGUF), str(self._model), str(file), *make]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.fail(f"the model could not be made: {made.stderr.strip()}")
        command = [str(self._binary), "-m", str(file), "--alias", "tiny", *flags, "--no-ui"]
        command += ["--host", "127.0.0.1", "--port", str(port), "-t", "2", "--poll", "0"]
        command += ["-np", str(SLOTS), "-c", str(SLOTS * 512)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._processes.append(process)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready("llama-server", url, process, log, START_TIMEOUT_S)
        return url

    def stop(self) -> None:
        """Kill all."""
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def llama_servers(
    llama_server_binary: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaServers]:
    servers = LlamaServers(llama_server_binary, minilm, tmp_path_factory.mktemp("minilm"))
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def llama_embeds(llama_servers: LlamaServers) -> str:
    """The URL of a llama-server that embeds."""
    return llama_servers.start("minilm", "--embeddings")


@pytest.fixture(scope="session")
def llama_ranks(llama_servers: LlamaServers) -> str:
    """The URL of a llama-server that reranks; its head has random weights."""
    return llama_servers.start("rank", "--reranking", make=("--rank",))


@pytest.fixture(scope="session")
def vllm_pools(vllm_python: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vLLM with the encoder: it embeds, and reranks by the similarity of vectors."""
    log, port = tmp_path_factory.mktemp("vllm-minilm") / "log", free_port()
    command = ["sh", str(SERVE_VLLM), str(vllm_python), str(minilm), str(port)]
    command += ["--runner", "pooling", "--max-model-len", "256"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until_ready("vLLM", f"http://127.0.0.1:{port}", process, log, VLLM_START_TIMEOUT_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its engine is a process of its own
        process.wait()


class RealEmbeddings(EmbeddingContract):
    """The contract, and what a real model can show."""

    tokens = (101, 4937, 102)
    same_within = 1e-3
    too_long = "word " * 600

    def refused(self) -> EmbeddingTask:
        return self.task(self.too_long)

    async def test_similar_sentences_are_near(self, worker: Any) -> None:
        (found,) = await self.embed(worker, self.task(*TEXTS))
        cat, kitten, prices = map(to_floats, found.vectors)
        assert len(cat) == 384
        assert product(cat, kitten) > 0.5 > product(cat, prices) + 0.2


class TestEmbeddingsOnLlamaServer(RealEmbeddings):
    @pytest.fixture
    async def worker(self, llama_embeds: str) -> AsyncIterator[Any]:
        worker = EMBEDDING.make(EndpointConfig("llama_cpp", llama_embeds))
        yield worker
        await worker.aclose()


class TestEmbeddingsOnVllm(RealEmbeddings):
    @pytest.fixture
    async def worker(self, vllm_pools: str) -> AsyncIterator[Any]:
        worker = EMBEDDING.make(EndpointConfig("vllm", vllm_pools))
        yield worker
        await worker.aclose()


class TestRerankOnLlamaServer(RerankContract):
    knows = False

    @pytest.fixture
    async def worker(self, llama_ranks: str) -> AsyncIterator[Any]:
        worker = RERANK.make(EndpointConfig("llama_cpp", llama_ranks))
        yield worker
        await worker.aclose()

    def refused(self) -> RerankTask:
        return self.task(query="word " * 600)


class TestRerankOnVllm(RerankContract):
    @pytest.fixture
    async def worker(self, vllm_pools: str) -> AsyncIterator[Any]:
        worker = RERANK.make(EndpointConfig("vllm", vllm_pools))
        yield worker
        await worker.aclose()

    def refused(self) -> RerankTask:
        return self.task(query="word " * 600)


async def test_a_server_that_does_another_kind_of_work_says_how_to_start_it(llama_embeds: str) -> None:
    worker = RERANK.make(EndpointConfig("llama_cpp", llama_embeds))
    with pytest.raises(ModelNotFound, match="Start it with `--reranking`"):
        await worker.rerank(RerankTask("tiny", "cat", TEXTS))
    await worker.aclose()


@pytest.mark.parametrize("backend", ["llama_cpp", "vllm"])
async def test_jobs_share_calls_and_a_text_that_is_too_long_fails_alone(
    backend: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue({"llama_cpp": "llama_embeds", "vllm": "vllm_pools"}[backend])
    endpoint = {"backend": backend, "base_url": url, "model": "tiny", "max_in_flight": 64}
    settings = load_settings(environ={}, routes={"v": {"kind": "embedding", "endpoints": [endpoint]}})
    async with local_scheduler(settings) as client:
        texts = ["word " * 600 if at == 7 else f"{TEXTS[at % 3]} Number {at}." for at in range(40)]
        jobs = await client.enqueue_many([EmbeddingRequest(input=text) for text in texts])
        for at, job in enumerate(jobs):
            assert not isinstance(job, Exception)
            if at == 7:
                with pytest.raises(JobFailed) as failed:
                    await job.result(timeout_s=60)
                assert failed.value.reason == "context_overflow"
                continue
            result = await job.result(timeout_s=60)
            assert isinstance(result, Embeddings)
            alone = await client.embed(texts[at], timeout_s=60)
            assert product(result.vectors[0], alone.vectors[0]) == pytest.approx(1, abs=1e-3)
