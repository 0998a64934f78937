"""Model workers: the adapters between the scheduler and the back ends that generate text."""

from workers.base import (
    Capabilities,
    Completed,
    EndpointConfig,
    Generation,
    Health,
    Load,
    MemberFailed,
    ModelWorker,
    Output,
    Piece,
    TokenUsage,
)
from workers.errors import (
    ContextOverflow,
    RequestRejected,
    UnknownBackend,
    WorkerAuthError,
    WorkerConfigError,
    WorkerError,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)
from workers.registry import known_backends, make_worker

__all__ = [
    "Capabilities",
    "Completed",
    "ContextOverflow",
    "EndpointConfig",
    "Generation",
    "Health",
    "Load",
    "MemberFailed",
    "ModelWorker",
    "Output",
    "Piece",
    "RequestRejected",
    "TokenUsage",
    "UnknownBackend",
    "WorkerAuthError",
    "WorkerConfigError",
    "WorkerError",
    "WorkerOverloaded",
    "WorkerProtocolError",
    "WorkerTimeout",
    "WorkerUnavailable",
    "known_backends",
    "make_worker",
]
