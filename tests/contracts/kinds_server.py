"""Embeds and reranks in OpenAI's and Jina's form, without a model: the echo's vectors and scores."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from tests.contracts.wire import FakeServer, Request, answer
from workers.base import EndpointConfig
from workers.echo_kinds import EchoEmbeddingWorker, EchoRerankWorker
from workers.embedding import EmbeddingTask
from workers.rerank import RerankTask
from workers.vectors import to_floats

FORBIDDEN = "forbidden"
"""A text that the server refuses."""
REFUSAL = {"error": {"message": "the input is refused", "type": "invalid_request_error", "code": 400}}

_CONFIG = EndpointConfig("echo")


class KindsServer(FakeServer):
    """`as_numbers`: it ignores that vectors are asked for in base64; `shortens`: it heeds `dimensions`."""

    def __init__(self, *, as_numbers: bool = False, shortens: bool = True) -> None:
        super().__init__()
        self.as_numbers = as_numbers
        self.shortens = shortens
        self.released = asyncio.Event()
        self.released.set()
        self._embedder, self._reranker = EchoEmbeddingWorker(_CONFIG), EchoRerankWorker(_CONFIG)

    @property
    def asked(self) -> list[Any]:
        """The bodies of the calls, without the probes."""
        return [body for body in self.bodies if body is not None]

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        await self.released.wait()
        if request.path.endswith("/embeddings"):
            await answer(*await self._embed(request.body))(writer)
        elif request.path.endswith("/rerank"):
            await answer(*await self._rerank(request.body))(writer)
        elif request.path.endswith("/models"):
            await answer(200, {"object": "list", "data": [{"id": "tiny"}]})(writer)
        else:
            await answer(200, {})(writer)

    async def _embed(self, body: dict[str, Any]) -> tuple[int, Any]:
        if FORBIDDEN in body["input"]:
            return 400, REFUSAL
        inputs: Any = tuple(one if isinstance(one, str) else tuple(one) for one in body["input"])
        dimensions = body.get("dimensions") if self.shortens else None
        (found,) = await self._embedder.embed([EmbeddingTask("tiny", inputs, dimensions)])
        encode: Any = to_floats if self.as_numbers else lambda vector: base64.b64encode(vector).decode()
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(found.vectors)
        ]
        tokens = found.usage.input_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        # The order says nothing: the index does.
        return 200, {"object": "list", "model": "tiny", "data": data[::-1], "usage": usage, "id": "embd-1"}

    async def _rerank(self, body: dict[str, Any]) -> tuple[int, Any]:
        if FORBIDDEN in body["documents"]:
            return 400, REFUSAL
        task = RerankTask("tiny", body["query"], tuple(body["documents"]), body.get("top_n"))
        found = await self._reranker.rerank(task)
        results = [{"index": one.index, "relevance_score": one.score} for one in found.scores]
        return 200, {"model": "tiny", "results": results, "usage": {"total_tokens": found.usage.input_tokens}}
