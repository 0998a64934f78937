"""Calls to `/v1/embeddings` in OpenAI's form, which all engines speak.

Vectors come in base64, a third of the size of numbers in JSON and faster to read. A server that refuses
`encoding_format`, or ignores it, sends numbers.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, ClassVar

from workers.calls import MALFORMED
from workers.embedding import Embedded, EmbeddingTask
from workers.http_worker import HttpWorker, post_body
from workers.openai_content import model_name
from workers.openai_usage import read_usage
from workers.optional_fields import Attempts
from workers.parameters import Parameters
from workers.shares import share_usage
from workers.vectors import read_vector

MAX_INPUTS = 512
"""The most inputs in one HTTP request; others follow in the next. So an answer stays below 16 MiB."""

_FIELDS = Parameters("embeddings", frozenset({"dimensions", "encoding_format", "input", "model", "stream"}))
_KNOWN = frozenset({"data", "model", "object", "usage"})


class EmbeddingCalls(HttpWorker):
    """The base of an adapter to a server that embeds: `endpoint` and `model` as for `HttpWorker`."""

    embeddings_path: ClassVar[str] = "/v1/embeddings"
    """Where the server embeds."""

    async def embed(self, batch: Sequence[EmbeddingTask]) -> Sequence[Embedded]:
        """Embed a batch; see `EmbeddingWorker.embed`."""
        answers = [
            await self._post(batch[0], inputs)
            for inputs in _chunks(list(chain.from_iterable(task.inputs for task in batch)))
        ]
        try:
            vectors = chain.from_iterable(vectors for vectors, _ in answers)
            return _parted(batch, list(vectors), [answer for _, answer in answers])
        except MALFORMED:
            raise self.endpoint.malformed() from None

    async def _post(
        self, task: EmbeddingTask, inputs: Sequence[Any]
    ) -> tuple[list[bytes], Mapping[str, Any]]:
        body = self._body(task, inputs)
        answer = await post_body(
            self.endpoint,
            self.embeddings_path,
            Attempts(body, self.optional),
            self.request_headers(task.request_id),
        )
        try:
            return _vectors(answer, len(inputs)), answer
        except MALFORMED:
            raise self.endpoint.malformed() from None

    def _body(self, task: EmbeddingTask, inputs: Sequence[Any]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model or task.model,
            "input": list(inputs),
            "encoding_format": "base64",
        }
        if task.dimensions is not None:
            body["dimensions"] = task.dimensions
        _FIELDS.put_extra(body, task.extra_body)
        return body


def rest_of(answer: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any] | None:
    """The fields of an answer that have no name here, as they came."""
    return {name: value for name, value in answer.items() if name not in known and value is not None} or None


def _chunks(inputs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(inputs), MAX_INPUTS):
        yield inputs[at : at + MAX_INPUTS]


def _vectors(answer: Mapping[str, Any], count: int) -> list[bytes]:
    """The vectors by their index. Raises one of `MALFORMED` unless each input has exactly one."""
    found: dict[int, bytes] = {}
    for at, item in enumerate(answer["data"]):
        found[item.get("index", at)] = read_vector(item["embedding"])
    if len(answer["data"]) != count or found.keys() != set(range(count)):
        raise ValueError("not one vector for each input")
    return [found[index] for index in range(count)]


def _parted(
    batch: Sequence[EmbeddingTask], vectors: Sequence[bytes], answers: Sequence[Mapping[str, Any]]
) -> list[Embedded]:
    """What each task gets of the answers to all."""
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError("vectors of several lengths")
    usages = share_usage([read_usage(answer.get("usage")) for answer in answers], batch)
    rest = iter(vectors)
    first = answers[0]
    return [
        Embedded(
            member,
            tuple(islice(rest, len(task.inputs))),
            usage,
            model_name(first.get("model")),
            rest_of(first, _KNOWN),
        )
        for member, (task, usage) in enumerate(zip(batch, usages, strict=True))
    ]
