"""Results of other kinds of work than text: embeddings and rerank."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from scheduler.model.kind import Kind
from scheduler.model.result import Choice, JobResult
from workers.embedding import FLOAT_BYTES
from workers.vectors import to_floats


class Embeddings(JobResult):
    """The result of an `EmbeddingRequest`: a vector for each input. It has no text."""

    text: str = ""
    """Empty."""
    choices: list[Choice] = Field(default_factory=list)
    """None."""
    embeddings: list[str] = Field(default_factory=list)
    """The vectors as they are stored: 32-bit floats, little-endian, in base64, as OpenAI encodes them."""

    @cached_property
    def vectors(self) -> list[list[float]]:
        """The vectors, in the order of the inputs. `numpy.frombuffer` reads `embeddings` much faster."""
        return [to_floats(binascii.a2b_base64(one)) for one in self.embeddings]

    @property
    def dimensions(self) -> int:
        """The length of each vector; 0 if there is none."""
        return len(binascii.a2b_base64(self.embeddings[0])) // FLOAT_BYTES if self.embeddings else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One document of a `Ranking`."""

    index: int
    """Its index in the documents of the request."""
    score: float
    """Its relevance; higher is better. Models differ in their scale: compare only scores of one answer."""
    document: str | None = None
    """Its text, if the request asked for it."""


class Ranking(JobResult):
    """The result of a `RerankRequest`: the documents, the most relevant first. It has no text."""

    text: str = ""
    """Empty."""
    choices: list[Choice] = Field(default_factory=list)
    """None."""
    results: list[Ranked] = Field(default_factory=list)
    """The best `top_n` documents."""


_OF_KIND: Mapping[Any, type[JobResult]] = {Kind.EMBEDDING: Embeddings, Kind.RERANK: Ranking}


def result_of(fields: Mapping[str, Any]) -> JobResult:
    """Make the result of its stored fields: `kind` says which class it is, and is left out for text.

    Raises:
        pydantic.ValidationError: these are not the fields of a result.
    """
    kind = fields.get("kind")
    if kind is None:  # all prompts
        return JobResult.model_validate(fields)
    return _OF_KIND.get(kind, JobResult).model_validate(fields)
