"""Settings of one route: its endpoints, and what happens to a prompt before and after the call."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from scheduler.model import Name
from scheduler.settings.endpoint import EndpointSettings
from scheduler.settings.section import Section


class BatchSettings(Section):
    """How long and how far inference calls are gathered. `max_size = 1` turns gathering off."""

    max_size: int = Field(default=32, ge=1, le=1024)
    max_wait_ms: float = Field(default=5.0, ge=0, le=60_000)
    max_tokens: int = Field(default=8192, ge=1)


class RagSettings(Section):
    """Retrieval over a folder of text and Markdown files: `k` passages of about `passage_words` words."""

    documents: Path
    k: int = Field(default=4, ge=1, le=100)
    passage_words: int = Field(default=200, ge=20, le=5000)


class Example(Section):
    """One worked example for few-shot prompting."""

    user: str
    assistant: str


class AssembleSettings(Section):
    """How the prompt is put together.

    `template` is a Jinja2 template that sees `prompt`, `passages`, `metadata` and `examples`; `system` is the
    system prompt; `budget_tokens` bounds the whole prompt and trims passages first.
    """

    template: str | None = None
    system: str | None = None
    examples: list[Example] = Field(default_factory=list)
    budget_tokens: int | None = Field(default=None, ge=16)


class PostSettings(Section):
    """What happens to the answer: white space trimmed at both ends, personal data redacted."""

    trim: bool = False
    redact: list[Literal["email", "phone", "card"]] = Field(default_factory=list)


STAGES = ("rag", "assemble", "inference", "post", "stream")


class RouteSettings(Section):
    """A model name that users ask for, and how it is served.

    `fallbacks` name routes whose endpoints answer, in that order, while none of its own can.
    `stages` is the order of the stages; a stage of your own stands in it as `"package.module:Name"`.
    """

    endpoints: list[EndpointSettings] = Field(min_length=1)
    fallbacks: list[Name] = Field(default_factory=list)
    batch: BatchSettings = BatchSettings()
    rag: RagSettings | None = None
    assemble: AssembleSettings = AssembleSettings()
    post: PostSettings = PostSettings()
    stages: list[str] = Field(default_factory=lambda: list(STAGES))
    max_waiting: int | None = Field(default=None, ge=1)
    max_attempts: int | None = Field(default=None, ge=1)
    max_waits: int | None = Field(default=None, ge=0)

    @field_validator("stages")
    @classmethod
    def _known_stages(cls, stages: list[str]) -> list[str]:
        for stage in stages:
            if stage not in STAGES and ":" not in stage:
                raise ValueError(
                    f"unknown stage {stage!r}; there are {', '.join(STAGES)}, "
                    "and your own as 'package.module:Name'"
                )
        built_in = [stage for stage in stages if stage in STAGES]
        if built_in != [stage for stage in STAGES if stage in built_in]:
            raise ValueError(f"the built-in stages keep their order: {', '.join(STAGES)}")
        if "inference" not in stages or "stream" not in stages:
            raise ValueError("inference and stream cannot be left out")
        return stages

    @property
    def uses_metadata(self) -> bool:
        """Whether a request's metadata can change the answer."""
        return "metadata" in (self.assemble.template or "") or any(":" in stage for stage in self.stages)

    @property
    def revision(self) -> str:
        """A hash of the settings that change the answer: `dedup_key="auto"` tells old ones from new by it."""
        what = self.model_dump_json(
            include={
                "rag": True,
                "assemble": True,
                "post": True,
                "stages": True,
                "endpoints": {"__all__": {"backend", "model", "options"}},
            }
        )
        return hashlib.blake2b(what.encode(), digest_size=8).hexdigest()
