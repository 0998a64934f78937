"""prompt-scheduler: priorities, dedup, micro-batching and streamed results in front of LLM back ends."""

from typing import Any

import _prompt_scheduler.checked  # noqa: F401  before a `workers` that is somebody else's is imported
from scheduler.client import AsyncClient, Client, Job, SyncJob
from scheduler.errors import (
    ConfigError,
    DedupConflict,
    InvalidRequest,
    InvalidTransition,
    JobCancelled,
    JobEnded,
    JobExpired,
    JobFailed,
    JobNotFound,
    JobShed,
    NewerData,
    NoTicket,
    QueueFull,
    RedisAuthError,
    RedisError,
    RedisOutOfMemory,
    RedisTooOld,
    RedisUnavailable,
    ResultTimeout,
    SchedulerError,
    UnknownModel,
)
from scheduler.events import (
    Cancelled,
    Delta,
    Done,
    Event,
    Expired,
    Failed,
    Queued,
    RawEvent,
    Retrying,
    Shed,
    Started,
)
from scheduler.model import (
    Choice,
    DedupMode,
    EmbeddingRequest,
    Embeddings,
    GenerationParams,
    JobError,
    JobInfo,
    JobRequest,
    JobResult,
    JobState,
    Message,
    Priority,
    PromptRequest,
    Ranked,
    Ranking,
    RerankRequest,
    Source,
    Timings,
    Usage,
)
from scheduler.settings import Settings, load_settings

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Choice",
    "Client",
    "ConfigError",
    "DedupConflict",
    "DedupMode",
    "Delta",
    "Done",
    "EmbeddingRequest",
    "Embeddings",
    "Event",
    "Expired",
    "Failed",
    "GenerationParams",
    "InvalidRequest",
    "InvalidTransition",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "JobRequest",
    "JobResult",
    "JobShed",
    "JobState",
    "Message",
    "NewerData",
    "NoTicket",
    "Priority",
    "PromptRequest",
    "QueueFull",
    "Queued",
    "Ranked",
    "Ranking",
    "RawEvent",
    "RedisAuthError",
    "RedisError",
    "RedisOutOfMemory",
    "RedisTooOld",
    "RedisUnavailable",
    "RerankRequest",
    "ResultTimeout",
    "Retrying",
    "SchedulerError",
    "Settings",
    "Shed",
    "Source",
    "Started",
    "SyncJob",
    "Timings",
    "UnknownModel",
    "Usage",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    # arq looks this up; making it reads settings and looks for Redis, so it is not made at import.
    if name == "WorkerSettings":
        from scheduler.host.worker_settings import worker_settings  # noqa: PLC0415  it needs arq

        return worker_settings()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
