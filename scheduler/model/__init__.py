"""The nouns of the system: a request and its parts, a job's state, its result, its record."""

from scheduler.model.field import MAX_DURATION_S, NAME, Duration, Frozen, Name
from scheduler.model.job import HistoryEntry, JobError, JobInfo, JobState
from scheduler.model.job_request import (
    DEFAULT_TENANT,
    MAX_DEDUP_KEY_BYTES,
    MAX_REQUEST_BYTES,
    DedupMode,
    JobRequest,
)
from scheduler.model.kind import Kind
from scheduler.model.other_requests import MAX_INPUTS, EmbeddingRequest, Input, RerankRequest
from scheduler.model.other_results import Embeddings, Ranked, Ranking, result_of
from scheduler.model.params import GenerationParams
from scheduler.model.priority import URGENT, Priority, is_urgent
from scheduler.model.refusal import invalid_request
from scheduler.model.request import (
    DEFAULT_MODEL,
    MAX_PROMPT_CHARS,
    Message,
    PromptRequest,
)
from scheduler.model.result import Choice, JobResult, Source, Timings, Usage

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_TENANT",
    "MAX_DEDUP_KEY_BYTES",
    "MAX_DURATION_S",
    "MAX_INPUTS",
    "MAX_PROMPT_CHARS",
    "MAX_REQUEST_BYTES",
    "NAME",
    "URGENT",
    "Choice",
    "DedupMode",
    "Duration",
    "EmbeddingRequest",
    "Embeddings",
    "Frozen",
    "GenerationParams",
    "HistoryEntry",
    "Input",
    "JobError",
    "JobInfo",
    "JobRequest",
    "JobResult",
    "JobState",
    "Kind",
    "Message",
    "Name",
    "Priority",
    "PromptRequest",
    "Ranked",
    "Ranking",
    "RerankRequest",
    "Source",
    "Timings",
    "Usage",
    "invalid_request",
    "is_urgent",
    "result_of",
]
