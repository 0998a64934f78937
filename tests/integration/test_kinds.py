"""Jobs that embed or rerank, from the client through an engine to a server and back."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scheduler import (
    DedupConflict,
    EmbeddingRequest,
    Embeddings,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobRequest,
    PromptRequest,
    Ranked,
    Ranking,
    RerankRequest,
    Settings,
)
from scheduler.engine import Engine
from scheduler.errors import ConfigError
from scheduler.events import Done, Started
from scheduler.routing.breaker import BreakerState
from scheduler.testing import local_client
from tests.contracts.kinds_server import FORBIDDEN, KindsServer
from tests.contracts.wire import listening
from tests.integration.engine_room import Room, puppet_route, settings_of, until
from tests.patience import SOON_S
from workers.echo_kinds import DIMENSIONS
from workers.vectors import to_floats

TEXTS = ["the cat sat", "stock prices fell"]
DOCUMENTS = ["prices fell", "the panda lives in China"]


def routes(base_url: str = "", **endpoint: Any) -> dict[str, Any]:
    backend = {"backend": "vllm", "base_url": base_url} if base_url else {"backend": "echo"}
    return {
        "chat": puppet_route(),
        "vectors": {"kind": "embedding", "endpoints": [{**backend, **endpoint}]},
        "ranks": {"kind": "rerank", "endpoints": [{**backend, **endpoint}]},
    }


def with_routes(base_url: str = "", **endpoint: Any) -> Settings:
    return settings_of(routes=routes(base_url, **endpoint), retry_base_s=0.001)


@pytest.fixture
async def server() -> AsyncIterator[KindsServer]:
    async with listening(KindsServer()) as server:
        yield server


def endpoint_of(engine: Engine, route: str = "vectors") -> Any:
    return engine.routes[route].endpoints[0]


async def test_texts_become_vectors(room: Room) -> None:
    settings = with_routes()
    await room.engine(settings)
    client = await room.client(settings)
    result = await client.embed(TEXTS, timeout_s=SOON_S)
    assert isinstance(result, Embeddings)
    assert [len(vector) for vector in result.vectors] == [DIMENSIONS] * 2
    assert result.dimensions == DIMENSIONS
    assert to_floats(base64.b64decode(result.embeddings[1])) == result.vectors[1]
    assert (result.usage.total_tokens, result.usage.output_tokens) == (6, 0)
    assert (result.usage.input_tokens, result.model, result.endpoint) == (6, "echo", "vectors.0")
    assert (result.text, result.attempts) == ("", 1)
    (one,) = (await client.embed("the cat sat", dimensions=8, timeout_s=SOON_S)).vectors
    assert len(one) == 8


async def test_documents_are_ordered_by_their_relevance(room: Room) -> None:
    settings = with_routes()
    await room.engine(settings)
    client = await room.client(settings)
    ranking = await client.rerank("where is the panda", DOCUMENTS, timeout_s=SOON_S)
    assert isinstance(ranking, Ranking)
    assert ranking.results == [Ranked(index=1, score=0.5), Ranked(index=0, score=0.0)]
    best = await client.rerank("panda", DOCUMENTS, top_n=1, return_documents=True, timeout_s=SOON_S)
    assert best.results == [Ranked(index=1, score=1.0, document=DOCUMENTS[1])]
    assert best.usage.input_tokens


async def test_a_job_of_another_kind_has_events_a_record_and_a_result_like_any(room: Room) -> None:
    settings = with_routes()
    await room.engine(settings)
    client = await room.client(settings)
    job = await client.enqueue(EmbeddingRequest(input=TEXTS, priority=7, metadata={"a": 1}))
    events = [event async for event in job.events()]
    assert [event.type for event in events] == ["queued", "started", "done"]
    assert isinstance(events[1], Started)
    assert isinstance(events[-1], Done)
    assert isinstance(events[-1].result, Embeddings)
    assert events[-1].result == await job.result() == await client.job(job.id).result()
    info = await job.info()
    assert (info.model, info.priority, info.state) == ("vectors", 7, "done")


async def test_duplicates_share_a_job_and_reuse_its_vectors(room: Room) -> None:
    settings = with_routes()
    client = await room.client(settings)
    requests = [EmbeddingRequest(input=TEXTS, dedup_key="auto", dedup="window")] * 2
    first, second = await client.enqueue_many(requests)
    assert not isinstance(first, Exception)
    assert not isinstance(second, Exception)
    assert (first.id, second.deduplicated) == (second.id, True)
    await client.enqueue(EmbeddingRequest(input=TEXTS, dedup_key="k"))
    with pytest.raises(DedupConflict):
        await client.enqueue(EmbeddingRequest(input=TEXTS, dimensions=3, dedup_key="k"))
    await room.engine(settings)
    vectors = (await first.result(timeout_s=SOON_S)).model_dump()["embeddings"]
    again = await client.embed(TEXTS, dedup_key="auto", dedup="window", timeout_s=SOON_S)
    assert (again.reused, again.embeddings) == (True, vectors)


async def test_jobs_that_wait_share_a_call_and_each_gets_its_own(room: Room, server: KindsServer) -> None:
    settings = with_routes(server.base_url, max_in_flight=64)
    engine, client = await room.engine(settings), await room.client(settings)
    alone = await client.embed(["text 7", "more 7"], timeout_s=SOON_S)
    server.released.clear()
    first = asyncio.create_task(client.embed("first", timeout_s=SOON_S))
    await until(lambda: endpoint_of(engine).window.in_flight == 1)
    requests = [EmbeddingRequest(input=[f"text {n}", f"more {n}"]) for n in range(20)]
    jobs = await client.enqueue_many(requests)
    await until(lambda: endpoint_of(engine).outstanding == 21)
    server.released.set()
    results = [await job.result(timeout_s=SOON_S) for job in jobs if not isinstance(job, Exception)]
    await first
    assert results[7].model_dump()["embeddings"] == alone.embeddings
    assert sum(result.usage.input_tokens or 0 for result in results) == 20 * 4
    calls = [len(body["input"]) for body in server.asked]
    assert sum(calls) == 2 + 1 + 40
    assert len(calls) <= 5


async def test_one_bad_input_fails_its_own_job_alone(room: Room, server: KindsServer) -> None:
    settings = with_routes(server.base_url, max_in_flight=64)
    engine, client = await room.engine(settings, start=False), await room.client(settings)
    jobs = await client.enqueue_many(
        [EmbeddingRequest(input=FORBIDDEN if n == 5 else f"text {n}") for n in range(16)]
    )
    await engine.start()
    outcomes = await asyncio.gather(
        *(job.result(timeout_s=SOON_S) for job in jobs if not isinstance(job, Exception)),
        return_exceptions=True,
    )
    bad = outcomes.pop(5)
    assert isinstance(bad, JobFailed)
    assert (bad.reason, bad.attempts) == ("request_rejected", 1)
    assert all(isinstance(one, Embeddings) for one in outcomes)
    assert endpoint_of(engine).breaker.state is BreakerState.CLOSED
    assert not endpoint_of(engine).last_error


async def test_urgent_jobs_do_not_wait_for_others_in_a_call(room: Room, server: KindsServer) -> None:
    settings = with_routes(server.base_url, max_in_flight=64)
    engine, client = await room.engine(settings, start=False), await room.client(settings)
    for n in range(4):
        await client.enqueue(EmbeddingRequest(input=f"bulk {n}", priority=1))
    urgent = await client.enqueue(EmbeddingRequest(input="urgent", priority=9))
    await engine.start()
    await urgent.result(timeout_s=SOON_S)
    assert ["urgent"] in [body["input"] for body in server.asked]


async def test_token_ids_and_texts_do_not_share_a_call(room: Room, server: KindsServer) -> None:
    settings = with_routes(server.base_url, max_in_flight=64)
    engine, client = await room.engine(settings, start=False), await room.client(settings)
    jobs = await client.enqueue_many(
        [
            EmbeddingRequest(input=[1, 2, 3]),
            EmbeddingRequest(input=[[4], [5, 6]]),
            EmbeddingRequest(input="text"),
            EmbeddingRequest(input="short", dimensions=4),
            EmbeddingRequest(input="mine", extra_body={"user": "u"}),
        ]
    )
    await engine.start()
    for job in jobs:
        assert not isinstance(job, Exception)
        await job.result(timeout_s=SOON_S)
    assert sorted((body["input"] for body in server.asked), key=str) == [
        ["mine"],
        ["short"],
        ["text"],
        [[1, 2, 3], [4], [5, 6]],
    ]


async def test_cancel_and_deadline_end_a_job_that_runs(room: Room, server: KindsServer) -> None:
    settings = with_routes(server.base_url)
    await room.engine(settings)
    client = await room.client(settings)
    server.released.clear()
    job = await client.enqueue(EmbeddingRequest(input="a"))
    await until(lambda: len(server.asked) >= 1)
    late = await client.enqueue(RerankRequest(query="a", documents=["b"], deadline_s=0.3))
    assert await job.cancel()
    with pytest.raises(JobCancelled):
        await job.result(timeout_s=SOON_S)
    with pytest.raises(JobExpired):
        await late.result(timeout_s=SOON_S)
    server.released.set()


async def test_a_server_that_comes_back_answers_after_a_retry(room: Room) -> None:
    settings = settings_of(routes=routes(options={"failure_rate": 0.5}), retry_base_s=0.001, max_attempts=50)
    await room.engine(settings)
    client = await room.client(settings)
    results = await asyncio.gather(*(client.embed(f"text {n}", timeout_s=SOON_S) for n in range(10)))
    assert all(len(result.vectors) == 1 for result in results)


async def test_vectors_beyond_the_bound_are_a_clear_failure(room: Room) -> None:
    settings = with_routes(max_output_bytes=1000)
    await room.engine(settings)
    client = await room.client(settings)
    await client.embed("fits", timeout_s=SOON_S)
    with pytest.raises(
        JobFailed, match="4 vectors of 64 floats, beyond 1,000 bytes: enqueue fewer"
    ) as failed:
        await client.embed(["a", "b", "c", "d"], timeout_s=SOON_S)
    assert failed.value.reason == "answer_too_long"


async def test_an_engine_that_ignores_dimensions_is_found_out(room: Room, server: KindsServer) -> None:
    server.shortens = False
    settings = with_routes(server.base_url)
    engine, client = await room.engine(settings), await room.client(settings)
    with pytest.raises(JobFailed, match=r"vectors of 64 floats, not 8.*leave dimensions out") as failed:
        await client.embed("a", dimensions=8, timeout_s=SOON_S)
    assert failed.value.reason == "request_rejected"
    await client.embed("a", dimensions=64, timeout_s=SOON_S)
    assert not endpoint_of(engine).last_error


# What is refused at enqueue


async def test_a_request_of_no_kind_is_refused(room: Room) -> None:
    client = await room.client()
    with pytest.raises(
        InvalidRequest, match=r"requests\.0: give a PromptRequest, EmbeddingRequest or Rerank"
    ):
        await client.enqueue_many([JobRequest(model="echo")])
    with pytest.raises(InvalidRequest):
        await client.enqueue(JobRequest(model="echo"))


async def test_a_route_of_another_kind_refuses_the_request(room: Room) -> None:
    settings = with_routes()
    await room.engine(settings)
    client = await room.client(
        settings_of(routes={"chat": puppet_route()})
    )  # it learns of the others from Redis
    with pytest.raises(InvalidRequest, match=r"route 'vectors' embeds.*kind = \"generate\"") as refused:
        await client.enqueue("hello", model="vectors")
    assert refused.value.field == "model"
    with pytest.raises(InvalidRequest, match=r"route 'chat' generates text.*kind = \"embedding\""):
        await client.embed(TEXTS, model="chat")
    with pytest.raises(InvalidRequest, match="route 'ranks' reranks"):
        await client.embed(TEXTS, model="ranks")
    assert (await client.embed(TEXTS, timeout_s=SOON_S)).endpoint == "vectors.0", "the only one of its kind"


async def test_without_a_route_of_the_kind_the_error_says_what_to_add(room: Room) -> None:
    client = await room.client()
    with pytest.raises(InvalidRequest, match='add one with kind = "rerank" to the settings'):
        await client.rerank("q", ["a"])
    with pytest.raises(InvalidRequest, match="route 'echo' generates text"):
        await client.embed("a", model="echo")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": []}, "input: give a text"),
        ({"input": 7}, "input: give a text"),
        ({"input": ["a", ""]}, r"input: an input is empty.*number 1"),
        ({"input": ["a", 7]}, r"input: an input is no text.*number 1"),
        ({"input": [[1], "a"]}, r"input: an input is neither.*number 1"),
        ({"input": [[1], []]}, r"input: an input is neither.*number 1"),
        ({"input": [1, -1]}, "input: a token id is no whole number from 0"),
        ({"input": [1, True]}, "input: a token id is no whole number"),
        ({"input": "\ud800"}, "input: an input is not valid UTF-8"),
        ({"input": ["a"] * 2049}, "input: has 2,049 inputs; give at most 2,048"),
        ({"input": "a" * 1_000_001}, "input: an input has 1,000,001 characters"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "8"}, "dimensions"),
        ({"input": "a", "prompt": "b"}, "prompt: no such field"),
        ({}, "input"),
    ],
)
def test_a_wrong_embedding_request_is_refused_with_its_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        EmbeddingRequest.parse(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"query": " ", "documents": ["a"]}, "query: is empty"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "text"}, "documents"),
        ({"query": "q", "documents": ["a", 7]}, r"documents\.1"),
        ({"query": "q", "documents": ["a"] * 2049}, "documents"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ({"query": "q"}, "documents"),
    ],
)
def test_a_wrong_rerank_request_is_refused_with_its_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        RerankRequest.parse(**fields)


async def test_an_id_of_another_kinds_job_is_refused(room: Room) -> None:
    settings = settings_of(routes=routes())
    await room.engine(settings)
    client = await room.client(settings)
    await client.rerank("q", ["a"], job_id="mine", timeout_s=SOON_S)
    with pytest.raises(InvalidRequest, match="job mine does another kind of work"):
        await client.embed("a", job_id="mine", timeout_s=SOON_S)


# Settings


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ({"kind": "embedding", "post": {"trim": True}}, "post: is for prompts"),
        ({"kind": "rerank", "stages": ["inference", "stream"]}, "stages: is for prompts"),
        ({"kind": "film"}, "kind"),
        ({"kind": "embedding", "fallbacks": ["chat"]}, "'chat' does another kind of work"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_refused(route: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings_of(routes={"chat": puppet_route(), "v": {"endpoints": [{"backend": "echo"}], **route}})


async def test_a_backend_without_the_kind_is_refused_at_the_start(room: Room) -> None:
    settings = settings_of(routes={"v": {"kind": "rerank", "endpoints": [{"backend": "anthropic"}]}})
    with pytest.raises(ConfigError, match=r"endpoint v\.0: .*that reranks is called 'anthropic'"):
        await room.engine(settings, start=False)


async def test_jobs_of_a_route_that_has_changed_its_kind_fail_and_say_so(room: Room) -> None:
    client = await room.client(with_routes())
    job = await client.enqueue(EmbeddingRequest(input="a", model="vectors"))
    changed = routes()
    changed["vectors"]["kind"] = "rerank"
    await room.engine(settings_of(routes=changed))
    with pytest.raises(JobFailed, match="asks for embedding work, and route vectors does rerank") as failed:
        await job.result(timeout_s=SOON_S)
    assert failed.value.reason == "unknown_kind"


async def test_a_prompt_on_a_route_that_embeds_now_fails_and_says_so(room: Room) -> None:
    client = await room.client()
    job = await client.enqueue(PromptRequest(prompt="hello"))
    await room.engine(settings_of(routes={"echo": {"kind": "embedding", "endpoints": [{"backend": "echo"}]}}))
    with pytest.raises(JobFailed, match="asks for generate work, and route echo does embedding"):
        await job.result(timeout_s=SOON_S)


# When the back end is in doubt


async def test_an_endpoint_is_checked_with_work_of_its_kind(room: Room, server: KindsServer) -> None:
    settings = with_routes(server.base_url, breaker={"failures": 1, "open_s": 0.01})
    engine = await room.engine(settings)
    for route, asked in (("vectors", {"input": ["Hi"]}), ("ranks", {"query": "Hi", "documents": ["Hi"]})):
        endpoint = endpoint_of(engine, route)
        endpoint.breaker.trip()
        await until(lambda: endpoint.breaker.state is BreakerState.CLOSED)  # noqa: B023  awaited at once
        assert asked.items() <= server.asked[-1].items()


def test_the_client_without_async_embeds_and_reranks() -> None:
    settings = settings_of(routes={name: route for name, route in routes().items() if name != "chat"})
    with local_client(settings) as client:
        assert len(client.embed(TEXTS, timeout_s=SOON_S).vectors) == 2
        assert client.rerank("panda", DOCUMENTS, timeout_s=SOON_S).results[0].index == 1


# Retrieval


async def test_retrieval_uses_the_routes_that_embed_and_rerank(room: Room, tmp_path: Any) -> None:
    for name, text in (("panda", "The panda lives in China."), ("prices", "Stock prices fell again.")):
        (tmp_path / f"{name}.md").write_text(text)
    rag = {"documents": str(tmp_path), "k": 1, "embeddings": "vectors", "rerank": "ranks"}
    settings = settings_of(
        routes={**routes(), "chat": {"endpoints": [{"backend": "echo"}], "rag": rag}}, retry_base_s=0.001
    )
    engine, client = await room.engine(settings), await room.client(settings)
    stage = engine.routes["chat"].pipeline.stages[0]
    await asyncio.wait_for(stage.ready(), SOON_S)  # type: ignore[attr-defined]  # the rag stage
    result = await client.run("where does the panda live", timeout_s=SOON_S)
    assert [(one.path, one.score) for one in result.sources] == [("panda.md", 0.4)]
    assert "panda lives" in result.text
