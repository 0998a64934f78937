"""The nouns of the system: a request and its parts, a job's state, its result, its record."""

from scheduler.model.field import MAX_DURATION_S, NAME, Duration, Frozen, Name
from scheduler.model.job import HistoryEntry, JobError, JobInfo, JobState
from scheduler.model.priority import URGENT, Priority, is_urgent
from scheduler.model.refusal import invalid_request
from scheduler.model.request import (
    DEFAULT_MODEL,
    DEFAULT_TENANT,
    MAX_DEDUP_KEY_BYTES,
    MAX_PROMPT_CHARS,
    MAX_REQUEST_BYTES,
    DedupMode,
    GenerationParams,
    Message,
    PromptRequest,
)
from scheduler.model.result import Choice, JobResult, Source, Timings, Usage

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_TENANT",
    "MAX_DEDUP_KEY_BYTES",
    "MAX_DURATION_S",
    "MAX_PROMPT_CHARS",
    "MAX_REQUEST_BYTES",
    "NAME",
    "URGENT",
    "Choice",
    "DedupMode",
    "Duration",
    "Frozen",
    "GenerationParams",
    "HistoryEntry",
    "JobError",
    "JobInfo",
    "JobResult",
    "JobState",
    "Message",
    "Name",
    "Priority",
    "PromptRequest",
    "Source",
    "Timings",
    "Usage",
    "invalid_request",
    "is_urgent",
]
