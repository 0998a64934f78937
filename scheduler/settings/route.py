"""Settings of one route: its endpoints, and what happens to a prompt before and after the call."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from scheduler.model import Kind, Name
from scheduler.settings.endpoint import EndpointSettings
from scheduler.settings.section import Section


class BatchSettings(Section):
    """How prompts are gathered into one inference call."""

    max_size: int = Field(default=32, ge=1, le=1024)
    """Prompts in one call; 1 turns batching off."""
    max_wait_ms: float = Field(default=5.0, ge=0, le=60_000)
    """The longest time that a prompt waits for others."""
    max_tokens: int = Field(default=8192, ge=1)
    """Estimated tokens in one call."""


class RagSettings(Section):
    """Retrieval of passages from a folder of text and Markdown files."""

    documents: Path
    """The folder."""
    k: int = Field(default=4, ge=1, le=100)
    """Passages for a prompt."""
    passage_words: int = Field(default=200, ge=20, le=5000)
    """The approximate length of a passage."""
    embeddings: Name | None = None
    """A route that embeds: passages are found by meaning too. None: by words alone."""
    rerank: Name | None = None
    """A route that reranks: it puts the best passages in order once more."""
    vectors: Path | None = None
    """The file that keeps the vectors of passages; None: `.vectors.sqlite` in the folder."""


class Example(Section):
    """One worked example for few-shot prompting."""

    user: str
    """What the user says."""
    assistant: str
    """The answer to it."""


class AssembleSettings(Section):
    """How the prompt is assembled from the request, passages and examples."""

    template: str | None = None
    """A Jinja2 template over `prompt`, `passages`, `metadata` and `examples`."""
    system: str | None = None
    """The system prompt."""
    examples: list[Example] = Field(default_factory=list)
    """Worked examples, in order."""
    budget_tokens: int | None = Field(default=None, ge=16)
    """A bound for the whole prompt, in estimated tokens; passages are dropped first."""


class PostSettings(Section):
    """What happens to the answer."""

    trim: bool = False
    """Remove white space at both ends of the answer."""
    redact: list[Literal["email", "phone", "card"]] = Field(default_factory=list)
    """The kinds of personal data to remove from the answer, and from its stream."""


STAGES = ("rag", "assemble", "inference", "post", "stream")
"""The built-in stages, in their order."""


_FOR_PROMPTS = frozenset({"rag", "assemble", "post", "stages"})


class RouteSettings(Section):
    """A model name that users ask for, and how it is served."""

    kind: Kind = Kind.GENERATE
    """The kind of work: `generate` (text), `embedding` or `rerank`."""
    endpoints: list[EndpointSettings] = Field(min_length=1)
    """The servers that answer; at least one."""
    fallbacks: list[Name] = Field(default_factory=list)
    """Routes whose endpoints answer, in this order, while none of its own can."""
    batch: BatchSettings = BatchSettings()
    """How inference calls are batched."""
    rag: RagSettings | None = None
    """Retrieval; None: no passages."""
    assemble: AssembleSettings = AssembleSettings()
    """How the prompt is assembled."""
    post: PostSettings = PostSettings()
    """What happens to the answer."""
    stages: list[str] = Field(default_factory=lambda: list(STAGES))
    """The order of the stages; name a stage of your own as `"package.module:Name"`."""
    max_waiting: int | None = Field(default=None, ge=1)
    """Jobs that may wait in this route, beside the queue's bound; None: the queue's bound alone."""
    max_attempts: int | None = Field(default=None, ge=1)
    """Failures after which a job has failed for good; None: the queue's setting."""
    max_waits: int | None = Field(default=None, ge=0)
    """How often a job may wait for its endpoints at no cost; None: the queue's setting."""

    @field_validator("stages")
    @classmethod
    def _known_stages(cls, stages: list[str]) -> list[str]:
        for stage in stages:
            if stage not in STAGES and ":" not in stage:
                raise ValueError(
                    f"unknown stage {stage!r}; give one of {', '.join(STAGES)}, "
                    "or your own as 'package.module:Name'"
                )
        built_in = [stage for stage in stages if stage in STAGES]
        if built_in != [stage for stage in STAGES if stage in built_in]:
            raise ValueError(f"the built-in stages keep their order: {', '.join(STAGES)}")
        if "inference" not in stages or "stream" not in stages:
            raise ValueError("inference and stream cannot be left out")
        return stages

    @model_validator(mode="after")
    def _only_prompts_have_stages(self) -> RouteSettings:
        set_for_prompts = sorted(_FOR_PROMPTS & self.model_fields_set)
        if self.kind is not Kind.GENERATE and set_for_prompts:
            raise ValueError(f'{set_for_prompts[0]}: is for prompts; leave it out with kind = "{self.kind}"')
        return self

    @property
    def uses_metadata(self) -> bool:
        """Whether a request's metadata can change the answer."""
        return "metadata" in (self.assemble.template or "") or any(":" in stage for stage in self.stages)

    @property
    def revision(self) -> str:
        """A hash of the settings that change the answer; part of the key that `dedup_key="auto"` makes."""
        settings = self.model_dump_json(
            include={
                "rag": True,
                "assemble": True,
                "post": True,
                "stages": True,
                "endpoints": {"__all__": {"backend", "model", "options"}},
            }
        )
        return hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
