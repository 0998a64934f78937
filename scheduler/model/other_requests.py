"""Requests for other kinds of work than text: embeddings and rerank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import Field, PlainValidator, StrictBool, StrictInt, field_validator

from scheduler.model.field import Text
from scheduler.model.job_request import JobRequest
from scheduler.model.kind import Kind
from scheduler.model.request import MAX_PROMPT_CHARS, MAX_TOKEN_ID

MAX_INPUTS = 2048
"""The most inputs of one request, and the most documents: as many as OpenAI takes."""
MAX_DIMENSIONS = 65_536


def _listed(value: object) -> list[Any]:
    """The inputs as a list of texts, or of lists of token ids."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("give a text, a list of texts, or token ids, and at least one of them")
    if type(value[0]) is int:
        value = [value]
    if len(value) > MAX_INPUTS:
        raise ValueError(
            f"has {len(value):,} inputs; give at most {MAX_INPUTS:,}, and enqueue the others apart"
        )
    of_text = isinstance(value[0], str)
    for at, one in enumerate(value):
        if wrong := _wrong_text(one) if of_text else _wrong_ids(one):
            raise ValueError(f"{wrong} (number {at}, counted from 0)" if len(value) > 1 else wrong)
    return list(value) if of_text else [list(one) for one in value]


def _wrong_text(text: object) -> str:
    if not isinstance(text, str):
        return "an input is no text; give all as text, or all as token ids"
    if not text:
        return "an input is empty; give it some text"
    if len(text) > MAX_PROMPT_CHARS:
        return f"an input has {len(text):,} characters; give at most {MAX_PROMPT_CHARS:,}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"an input is not valid UTF-8: lone surrogate at character {error.start}"
    return ""


def _wrong_ids(ids: object) -> str:
    if not isinstance(ids, list | tuple) or not ids:
        return "an input is neither text nor a list of token ids with something in it"
    if len(ids) > MAX_PROMPT_CHARS:
        return f"an input has {len(ids):,} token ids; give at most {MAX_PROMPT_CHARS:,}"
    if not all(type(one) is int and 0 <= one <= MAX_TOKEN_ID for one in ids):
        return f"a token id is no whole number from 0 to {MAX_TOKEN_ID:,}"
    return ""


Input: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""What to embed: a text, texts, the token ids of a text, or those of several."""


class EmbeddingRequest(JobRequest):
    """Texts to turn into vectors. Its route says `kind = "embedding"`."""

    kind: ClassVar[Kind] = Kind.EMBEDDING
    """The kind of work that it asks for."""

    input: Annotated[list[str] | list[list[int]], PlainValidator(_listed, json_schema_input_type=Input)]
    """A text, a list of texts, or their token ids; at most 2,048 of up to 1,000,000 characters."""
    dimensions: Annotated[StrictInt, Field(ge=1, le=MAX_DIMENSIONS)] | None = None
    """The length of the vectors, where the model can shorten them; None: its own."""


class RerankRequest(JobRequest):
    """Documents to order by their relevance to a query. Its route says `kind = "rerank"`."""

    kind: ClassVar[Kind] = Kind.RERANK
    """The kind of work that it asks for."""

    query: Text
    """What to look for."""
    documents: Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    """The documents, at most 2,048."""
    top_n: Annotated[StrictInt, Field(ge=1)] | None = None
    """How many of the best to return; None: all."""
    return_documents: StrictBool = False
    """Whether the result repeats the documents."""

    @field_validator("query")
    @classmethod
    def _says_something(cls, query: str) -> str:
        if not query.strip():
            raise ValueError("is empty; give it some text")
        return query
