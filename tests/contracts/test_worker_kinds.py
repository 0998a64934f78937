"""Workers that embed or rerank keep the promises of their ports, and read what servers answer."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.contracts.kinds_server import FORBIDDEN, KindsServer
from tests.contracts.wire import FakeServer, answer, listening, unused_url
from workers import (
    ContextOverflow,
    EmbeddingTask,
    EndpointConfig,
    ModelNotFound,
    RequestRejected,
    RerankTask,
    Score,
    TokenUsage,
    UnknownBackend,
    WorkerConfigError,
    WorkerFailed,
    WorkerProtocolError,
)
from workers.echo_kinds import EchoEmbeddingWorker, EchoRerankWorker
from workers.embedding_calls import MAX_INPUTS
from workers.kinds_contract import EmbeddingContract, RerankContract
from workers.registry import EMBEDDING, RERANK
from workers.vectors import read_vector, to_bytes, to_floats

BACKENDS = ["llama_cpp", "openai", "vllm"]
TASK = EmbeddingTask("tiny", ("hello",))
QUERY = RerankTask("tiny", "hello", ("one", "two"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with listening(FakeServer()) as fake:
        yield fake


class OnAServer:
    """Fixtures of both suites for the adapters to servers."""

    make: Callable[[EndpointConfig], Any]
    as_numbers = False

    @pytest.fixture
    async def worker(self, backend: str) -> AsyncIterator[Any]:
        async with listening(KindsServer(as_numbers=self.as_numbers)) as self.server:
            worker = type(self).make(EndpointConfig(backend, self.server.base_url))
            yield worker
            await worker.aclose()

    @pytest.fixture
    def unreachable_worker(self, backend: str) -> Any:
        return type(self).make(EndpointConfig(backend, unused_url()))

    @pytest.fixture
    def silent_worker(self, backend: str, silent_url: str) -> Any:
        return type(self).make(EndpointConfig(backend, silent_url, timeout_s=0.5))


class TestEmbeddingWorkers(OnAServer, EmbeddingContract):
    make = EMBEDDING.make

    def refused(self) -> EmbeddingTask:
        return self.task(FORBIDDEN)


class TestEmbeddingWorkersOfServersThatSendNumbers(TestEmbeddingWorkers):
    as_numbers = True


class TestRerankWorkers(OnAServer, RerankContract):
    make = RERANK.make

    def refused(self) -> RerankTask:
        return self.task(documents=(FORBIDDEN,))


class TestEchoEmbeddingWorker(EmbeddingContract):
    @pytest.fixture
    def worker(self) -> EchoEmbeddingWorker:
        return EchoEmbeddingWorker(EndpointConfig("echo", options={"fail_text": FORBIDDEN, "capacity": 4}))

    @pytest.fixture
    def silent_worker(self) -> EchoEmbeddingWorker:
        return EchoEmbeddingWorker(EndpointConfig("echo", timeout_s=0.1, options={"delay_s": 60}))

    def refused(self) -> EmbeddingTask:
        return self.task(f"a {FORBIDDEN} text")


class TestEchoRerankWorker(RerankContract):
    @pytest.fixture
    def worker(self) -> EchoRerankWorker:
        return EchoRerankWorker(EndpointConfig("echo", options={"fail_text": FORBIDDEN}))

    @pytest.fixture
    def silent_worker(self) -> EchoRerankWorker:
        return EchoRerankWorker(EndpointConfig("echo", timeout_s=0.1, options={"delay_s": 60}))

    def refused(self) -> RerankTask:
        return self.task(query=FORBIDDEN)


async def embed(server: FakeServer, *batch: EmbeddingTask, backend: str = "vllm", **config: Any) -> Any:
    worker = EMBEDDING.make(EndpointConfig(backend, server.base_url, **config))
    try:
        return await worker.embed(batch or [TASK])
    finally:
        await worker.aclose()


async def rerank(server: FakeServer, task: RerankTask = QUERY, *, backend: str = "vllm") -> Any:
    worker = RERANK.make(EndpointConfig(backend, server.base_url))
    try:
        return await worker.rerank(task)
    finally:
        await worker.aclose()


def vector(*floats: float) -> str:
    return base64.b64encode(to_bytes(floats)).decode()


def embeddings(*vectors: object, **more: Any) -> Any:
    return answer(200, {"data": [{"index": at, "embedding": one} for at, one in enumerate(vectors)], **more})


# What is asked


async def test_one_call_has_the_inputs_of_all_tasks(server: FakeServer) -> None:
    server.script = embeddings(vector(1, 0), vector(0, 1), vector(1, 1))
    first = EmbeddingTask("m", ("a", "b"), dimensions=2, extra_body={"user": "u"}, request_id="job-1")
    await embed(server, first, EmbeddingTask("m", ("c",), dimensions=2, extra_body={"user": "u"}))
    assert server.bodies == [
        {"model": "m", "input": ["a", "b", "c"], "encoding_format": "base64", "dimensions": 2, "user": "u"}
    ]
    assert "x-request-id: job-1" in server.headers[0]


async def test_a_long_list_goes_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(KindsServer()) as server:
        texts = tuple(f"text {number}" for number in range(MAX_INPUTS + 1))
        (found,) = await embed(server, EmbeddingTask("tiny", texts))
        assert [len(body["input"]) for body in server.asked] == [MAX_INPUTS, 1]
        (last,) = await embed(server, EmbeddingTask("tiny", texts[-1:]))
    assert (len(found.vectors), found.vectors[-1]) == (len(texts), last.vectors[0])
    assert found.usage.input_tokens == 2 * len(texts)


async def test_a_server_that_does_not_know_base64_is_asked_without(server: FakeServer) -> None:
    refusal = {"error": {"message": "encoding_format: extra fields not permitted", "type": "invalid_request"}}
    scripts = [answer(400, refusal), embeddings([0.5]), embeddings([0.5])]

    async def script(writer: Any) -> None:
        await scripts.pop(0)(writer)

    server.script = script
    worker = EMBEDDING.make(EndpointConfig("openai", server.base_url))
    assert to_floats((await worker.embed([TASK]))[0].vectors[0]) == [0.5]
    await worker.embed([TASK])
    await worker.aclose()
    assert ["encoding_format" in body for body in server.bodies] == [True, False, False]


async def test_rerank_asks_for_the_documents_and_how_many(server: FakeServer) -> None:
    server.script = answer(200, {"results": [{"index": 1, "relevance_score": 0.5}]})
    task = RerankTask("m", "q", ("a", "b"), top_n=1, extra_body={"truncate_prompt_tokens": 9})
    assert (await rerank(server, task)).scores == (Score(1, 0.5),)
    assert server.bodies == [
        {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 1, "truncate_prompt_tokens": 9}
    ]


@pytest.mark.parametrize(
    ("backend", "paths"),
    [
        ("llama_cpp", ["/v1/embeddings", "/v1/rerank"]),
        ("openai", ["/v1/embeddings", "/v1/rerank"]),
        ("vllm", ["/v1/embeddings", "/rerank"]),
    ],
)
async def test_each_engine_is_asked_where_it_answers(backend: str, paths: list[str]) -> None:
    async with listening(KindsServer()) as server:
        await embed(server, backend=backend)
        await rerank(server, backend=backend)
        assert server.paths == paths


@pytest.mark.parametrize("field", ["input", "model", "encoding_format", "dimensions"])
async def test_extra_body_cannot_change_what_the_request_says(server: FakeServer, field: str) -> None:
    with pytest.raises(RequestRejected, match=rf"extra_body\.{field}"):
        await embed(server, EmbeddingTask("m", ("a",), extra_body={field: 1}))
    assert not server.requests


# What is answered


async def test_what_the_engine_says_beside_the_vectors_is_kept(server: FakeServer) -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3, "cost": 0.25}
    server.script = embeddings(vector(1), model="e-1", usage=usage, id="embd-7", object="list", created=None)
    (found,) = await embed(server)
    assert (found.model, found.extra) == ("e-1", {"id": "embd-7"})
    assert (found.usage.input_tokens, found.usage.cost) == (3, 0.25)


async def test_shares_of_the_tokens_follow_the_texts_and_add_up(server: FakeServer) -> None:
    server.script = embeddings(vector(1), vector(2), vector(3), usage={"prompt_tokens": 100})
    batch = [EmbeddingTask("m", (text,)) for text in ("a" * 8, "b" * 28, "c" * 58)]
    assert [one.usage for one in await embed(server, *batch)] == [
        TokenUsage(10),
        TokenUsage(30),
        TokenUsage(60),
    ]


@pytest.mark.parametrize(
    "script",
    [
        embeddings(),
        embeddings(vector(1), vector(2)),
        embeddings(None),
        embeddings("not base64"),
        embeddings("AAA="),
        embeddings(""),
        embeddings([]),
        embeddings(["a"]),
        embeddings([True]),
        embeddings([1e39]),
        embeddings(vector(float("nan"))),
        embeddings(vector(float("inf"), float("-inf"))),
        embeddings([[1.0]]),
        answer(200, {"data": [{"index": 1, "embedding": [1.0]}]}),
        answer(200, {"data": [{"index": "0", "embedding": [1.0]}]}),
        answer(200, {"data": {"embedding": [1.0]}}),
        answer(200, []),
        answer(200, b"null"),
    ],
)
async def test_an_answer_without_one_good_vector_for_each_input_is_a_protocol_error(
    server: FakeServer, script: Any
) -> None:
    server.script = script
    with pytest.raises(WorkerProtocolError):
        await embed(server)


async def test_vectors_of_several_lengths_are_a_protocol_error(server: FakeServer) -> None:
    server.script = embeddings(vector(1), vector(1, 2))
    with pytest.raises(WorkerProtocolError):
        await embed(server, EmbeddingTask("m", ("a", "b")))


@pytest.mark.parametrize(
    "results",
    [
        [],
        [{"index": 0, "relevance_score": 1}],
        [{"index": 0, "relevance_score": 1}, {"index": 2, "relevance_score": 1}],
        [{"index": 0, "relevance_score": 1}, {"index": 0, "relevance_score": 2}],
        [{"index": -1, "relevance_score": 1}, {"index": 0, "relevance_score": 2}],
        [{"index": 0, "relevance_score": "1"}, {"index": 1, "relevance_score": 2}],
        [{"index": True, "relevance_score": 1}, {"index": 0, "relevance_score": 2}],
        [{"index": 0}, {"index": 1}],
        {"index": 0},
        None,
    ],
)
async def test_an_answer_without_a_score_for_each_document_is_a_protocol_error(
    server: FakeServer, results: Any
) -> None:
    server.script = answer(200, {"results": results})
    with pytest.raises(WorkerProtocolError):
        await rerank(server)


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ({"usage": {"total_tokens": 9}}, 9),
        ({"usage": {"prompt_tokens": 8, "total_tokens": 9}}, 8),
        ({"meta": {"tokens": {"input_tokens": 7}}}, 7),
        ({}, None),
        ({"usage": 3, "meta": []}, None),
    ],
)
async def test_tokens_of_a_rerank_by_the_names_of_each(
    server: FakeServer, said: Any, tokens: int | None
) -> None:
    results = [{"index": 0, "score": -2}, {"index": 1, "score": 1.5}]
    server.script = answer(200, {"results": results, **said})
    found = await rerank(server)
    assert (found.scores, found.usage.input_tokens) == ((Score(1, 1.5), Score(0, -2.0)), tokens)


async def test_scores_as_a_bare_list_are_read(server: FakeServer) -> None:
    server.script = answer(200, [{"index": 1, "score": 0.5}, {"index": 0, "score": 0.25}])
    assert (await rerank(server)).scores == (Score(1, 0.5), Score(0, 0.25))


# What llama-server refuses in words of its own


def llama_error(status: int, kind: str, message: str) -> Any:
    return answer(status, {"error": {"code": status, "type": kind, "message": message}})


async def test_an_input_beyond_the_physical_batch_is_the_requests_fault(server: FakeServer) -> None:
    words = "input (600 tokens) is too large to process. increase the physical batch size"
    server.script = llama_error(500, "server_error", words)
    with pytest.raises(ContextOverflow, match="too large"):
        await embed(server, backend="llama_cpp")


async def test_a_server_without_this_kind_of_work_is_not_the_requests_fault(server: FakeServer) -> None:
    words = "This server does not support embeddings. Start it with `--embeddings`"
    server.script = llama_error(501, "not_supported_error", words)
    with pytest.raises(ModelNotFound, match="--embeddings"):
        await embed(server, backend="llama_cpp")


async def test_a_server_that_reranks_and_answers_zeros_does_not_embed(server: FakeServer) -> None:
    server.script = embeddings(vector(-0.0, 0.0, 1.0))
    with pytest.raises(ModelNotFound, match="start it with `--embeddings`"):
        await embed(server, backend="llama_cpp")


async def test_other_errors_of_the_engine_stay_its_own(server: FakeServer) -> None:
    server.script = llama_error(500, "server_error", "boom")
    with pytest.raises(WorkerFailed):
        await embed(server, backend="llama_cpp")


# Settings


@pytest.mark.parametrize(
    ("registry", "words"),
    [(EMBEDDING, "no model worker that embeds is called 'anthropic'"), (RERANK, "that reranks")],
)
def test_a_backend_without_this_kind_of_work_is_said_to_have_none(registry: Any, words: str) -> None:
    with pytest.raises(UnknownBackend, match=words):
        registry.make(EndpointConfig("anthropic"))


def test_openai_itself_does_not_rerank() -> None:
    with pytest.raises(WorkerConfigError, match="OpenAI does not rerank"):
        RERANK.make(EndpointConfig("openai", api_key="sk-1"))


@pytest.mark.parametrize("backend", [*BACKENDS, "echo"])
@pytest.mark.parametrize("registry", [EMBEDDING, RERANK])
def test_unknown_options_are_refused(registry: Any, backend: str) -> None:
    with pytest.raises(WorkerConfigError, match=r"options\.listz"):
        registry.make(EndpointConfig(backend, "http://127.0.0.1:1", options={"listz": True}))


def test_a_vector_survives_its_bytes() -> None:
    floats = [0.0, -1.5, 3.25, 1e-30]
    assert to_floats(read_vector(vector(*floats))) == to_floats(to_bytes(floats))


async def test_echo_fails_by_chance() -> None:
    worker = EchoEmbeddingWorker(
        EndpointConfig("echo", options={"failure_rate": 0.5, "dimensions": 3}), chance=lambda: 0.4
    )
    with pytest.raises(Exception, match="failed by chance"):
        await worker.embed([TASK])
