"""The stages of a job between claim and end, and the pipeline that runs them."""

from scheduler.stages.assemble import AssembleStage
from scheduler.stages.base import AnswerFilter, PromptContext, Stage
from scheduler.stages.pipeline import DeadlinePassed, Pipeline, StageGate, build_pipeline, resolve_stage
from scheduler.stages.post import PostStage, StopFilter, TrimFilter
from scheduler.stages.rag import RagStage
from scheduler.stages.redaction import RedactFilter, redact
from scheduler.stages.tokens import estimate_tokens

__all__ = [
    "AnswerFilter",
    "AssembleStage",
    "DeadlinePassed",
    "Pipeline",
    "PostStage",
    "PromptContext",
    "RagStage",
    "RedactFilter",
    "Stage",
    "StageGate",
    "StopFilter",
    "TrimFilter",
    "build_pipeline",
    "estimate_tokens",
    "redact",
    "resolve_stage",
]
