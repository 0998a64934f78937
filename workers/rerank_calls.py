"""Calls to `/rerank` in the form of Jina and Cohere, which vLLM, llama-server and most gateways speak.

Source: https://jina.ai/reranker/ and https://docs.cohere.com/reference/rerank
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from workers.base import TokenUsage
from workers.calls import MALFORMED
from workers.embedding_calls import rest_of
from workers.http_worker import HttpWorker, post_body
from workers.openai_content import model_name
from workers.openai_usage import read_usage
from workers.optional_fields import Attempts
from workers.parameters import Parameters
from workers.rerank import Reranked, RerankTask, Score

_FIELDS = Parameters(
    "rerank", frozenset({"documents", "model", "query", "return_documents", "stream", "texts", "top_n"})
)
_KNOWN = frozenset({"model", "object", "results", "usage"})


class RerankCalls(HttpWorker):
    """The base of an adapter to a server that reranks: `endpoint` and `model` as for `HttpWorker`."""

    rerank_path: ClassVar[str] = "/v1/rerank"
    """Where the server reranks."""

    async def rerank(self, task: RerankTask) -> Reranked:
        """Order documents; see `RerankWorker.rerank`."""
        answer = await post_body(
            self.endpoint,
            self.rerank_path,
            Attempts(self._body(task), self.optional),
            self.request_headers(task.request_id),
        )
        try:
            return _reranked(answer, task)
        except MALFORMED:
            raise self.endpoint.malformed() from None

    def _body(self, task: RerankTask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model or task.model,
            "query": task.query,
            "documents": list(task.documents),
        }
        if task.top_n is not None:
            body["top_n"] = task.top_n
        _FIELDS.put_extra(body, task.extra_body)
        return body


def _reranked(answer: Any, task: RerankTask) -> Reranked:
    fields = answer if isinstance(answer, Mapping) else {"results": answer}
    scores = best(_scores(fields.get("results") or fields.get("data")), task)
    return Reranked(0, scores, _usage(fields), model_name(fields.get("model")), rest_of(fields, _KNOWN))


def best(scores: dict[int, float], task: RerankTask) -> tuple[Score, ...]:
    """The documents that were asked for, the most relevant first.

    Raises:
        ValueError: the engine scored other documents than those it got, or too few.
    """
    count = len(task.documents)
    wanted = min(count, task.top_n or count)
    if len(scores) < wanted or not scores.keys() <= set(range(count)):
        raise ValueError("not one score for each document")
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Score(index, score) for index, score in ranked[:wanted])


def _scores(results: Any) -> dict[int, float]:
    return dict(_score(result) for result in results)


def _score(result: Mapping[str, Any]) -> tuple[int, float]:
    index, score = result["index"], result.get("relevance_score", result.get("score"))
    if type(index) is not int or type(score) not in {int, float} or not math.isfinite(score):
        raise ValueError("no score of a document")
    return index, float(score)


def _usage(fields: Mapping[str, Any]) -> TokenUsage:
    """The tokens, by OpenAI's names or as Jina and Cohere say them."""
    usage = read_usage(fields.get("usage"))
    if usage.input_tokens is not None:
        return usage
    return next((found for counts in _counts(fields) if (found := read_usage(counts)).input_tokens), usage)


def _counts(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    usage, meta = fields.get("usage"), fields.get("meta")
    if isinstance(usage, Mapping):
        yield {"input_tokens": usage.get("total_tokens")}
    if isinstance(meta, Mapping) and isinstance(tokens := meta.get("tokens"), Mapping):
        yield {"input_tokens": tokens.get("input_tokens")}
