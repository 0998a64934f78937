"""How often the right passage is among the first k, on the labelled questions beside this file.

    make bench-retrieval  # or: python -m benchmarks.retrieval

Three files of a library's answers, in 32 sections, and 48 questions, most of which use other words than
their answer. The passages are found by the rag stage itself: by words (BM25), by words and meaning, with
vectors of all-MiniLM-L6-v2 on llama-server, and with a rerank by vLLM, which compares vectors of that model.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.batching import CACHE, find
from benchmarks.embeddings import llama_server, vllm
from scheduler.engine.routes import Route, build_routes
from scheduler.settings import load_settings
from scheduler.stages.base import PromptContext
from scheduler.stages.rag import RagStage

HERE = Path(__file__).parent
CUTS = (1, 3, 5)


@dataclass(frozen=True)
class Labelled:
    """A question, and the section that answers it."""

    question: str
    section: str


def labelled() -> list[Labelled]:
    """All questions."""
    lines = (HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Labelled(**json.loads(line)) for line in lines]


async def found(stage: RagStage, question: str) -> list[str]:
    """The texts of the passages for a question, the best first."""
    context = PromptContext("", 1, "chat", "default", 5, question, None, {}, {})
    await stage.run(context)
    return [passage.text for passage in context.passages]


async def recalls(stage: RagStage, questions: Sequence[Labelled]) -> list[float]:
    """The share of questions whose section is among the first passages, for each of `CUTS`."""
    ranks = []
    for one in questions:
        texts = await found(stage, one.question)
        hits = [at for at, text in enumerate(texts) if f"## {one.section}\n" in text]
        ranks.append(hits[0] if hits else max(CUTS))
    return [sum(rank < cut for rank in ranks) / len(ranks) for cut in CUTS]


def rag_stage(route: Route) -> RagStage | None:
    """The rag stage of a route, if it has one."""
    return next((stage for stage in route.pipeline.stages if isinstance(stage, RagStage)), None)


async def measure(endpoints: Mapping[str, Any], folder: Path) -> None:
    """Print a line for each way to retrieve that the endpoints allow."""
    rag = {"documents": str(HERE / "documents"), "k": max(CUTS)}
    by_meaning = {**rag, "embeddings": "minilm", "vectors": str(folder / "vectors.sqlite")}
    echo = [{"backend": "echo"}]
    configured: dict[str, Any] = {
        "BM25": {"rag": rag, "endpoints": echo},
        "BM25 + vectors": {"rag": by_meaning, "endpoints": echo},
        "minilm": {"kind": "embedding", "endpoints": [endpoints["embedding"]]},
    }
    if "rerank" in endpoints:
        configured["ranks"] = {"kind": "rerank", "endpoints": [endpoints["rerank"]]}
        configured["BM25 + vectors + rerank"] = {"rag": {**by_meaning, "rerank": "ranks"}, "endpoints": echo}
    names = {title.replace(" ", ""): title for title in configured}
    routes = build_routes(
        load_settings(environ={}, routes={name: configured[title] for name, title in names.items()})
    )
    for endpoint in (endpoint for route in routes.values() for endpoint in route.endpoints):
        endpoint.divide(1, 0)
    for name, title in names.items():
        if (stage := rag_stage(routes[name])) is not None:
            await stage.start()
            await stage.ready()
            shares = await recalls(stage, labelled())
            print(f"{title:<28}" + "".join(f"{share:>9.0%}" for share in shares), flush=True)
    for route in routes.values():
        await route.stop()


async def run() -> None:
    """Serve the models, and measure."""
    cached = ("llama-server", "bin", "llama-server")
    binary, model = find("LLAMA_SERVER", *cached, program="llama-server"), CACHE / "minilm" / "model"
    if binary is None or not model.is_dir():
        sys.exit("llama-server or all-MiniLM-L6-v2 is not there: `make llama-server minilm` gets both")
    print(f"{'recall@k':<28}" + "".join(f"{f'k = {cut}':>9}" for cut in CUTS), flush=True)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-retrieval-")))
        embedder = await stack.enter_async_context(llama_server(binary, model, folder))
        endpoints = {"embedding": {**embedder.endpoint, "max_in_flight": 8}}
        if python := find("VLLM_PYTHON", "vllm", "bin", "python"):
            reranker = await stack.enter_async_context(vllm(python, model, folder))
            endpoints["rerank"] = {**reranker.endpoint, "max_in_flight": 8}
        await measure(endpoints, folder)


if __name__ == "__main__":
    asyncio.run(run())
