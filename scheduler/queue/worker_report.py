"""What a worker process reports about itself, as it is stored in Redis. Written and read here alone."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)


class Report(BaseModel):
    """Base of reports. Other versions may have stored them: unknown fields are ignored, and a value that does
    not fit is replaced by its field's default."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, stored: Any) -> Any:
        return stored if isinstance(stored, dict | cls) else {}

    @field_validator("*", mode="wrap")
    @classmethod
    def _fits(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return validate(value)
        except ValidationError:
            return cls.model_fields[info.field_name or ""].get_default(call_default_factory=True)


class EndpointReport(Report):
    """An endpoint as one worker process uses it. Contains no key and no address."""

    name: str = "?"
    """Its name: the route's, a dot, and its number in the settings."""
    backend: str = ""
    """The kind of its back end, as in the settings."""
    in_flight: int = 0
    """Prompts that it holds for this process."""
    gathered: int = 0
    """Prompts in this process that wait for their call."""
    limit: int = 0
    """Prompts that this process lets it hold now."""
    max_in_flight: int | None = None
    """Prompts that it may hold for all processes; None while unknown."""
    reserved: int = 0
    """The part of this process' share that is for priorities 8 and 9."""
    breaker: str = "closed"
    """The state of its breaker: closed, open, half_open."""
    usable_in_s: float = 0.0
    """Seconds until it may be used again; 0 for now."""
    permit_in_s: float = 0.0
    """Seconds until its rate limit lets the next prompt begin; 0 for now."""
    last_error: str = ""
    """Its last error; empty while it is well."""


class RouteReport(Report):
    """A route that a worker process serves."""

    running: int = 0
    """Jobs of the route in this process."""
    stages: dict[str, int] = Field(default_factory=dict)
    """Jobs in each stage."""
    endpoints: tuple[EndpointReport, ...] = ()
    """The route's endpoints, in the order of the settings."""


class WorkerReport(Report):
    """A worker process, as it describes itself with each renewal of its leases."""

    host: str = ""
    """The name of its host."""
    pid: int = 0
    """Its process id."""
    started_at_ms: int = 0
    """When it started, in milliseconds since the epoch, by its own clock."""
    running: int = 0
    """Jobs in flight."""
    max_running: int = 0
    """The most jobs that it runs at once."""
    draining: bool = False
    """Whether it finishes its jobs and claims no more."""
    metrics_url: str = ""
    """Where it serves its metrics; empty if it does not."""
    routes: dict[str, RouteReport] = Field(default_factory=dict)
    """The routes that it serves, by name."""


def encode_report(report: WorkerReport) -> bytes:
    """The report as it is stored: JSON."""
    return report.model_dump_json().encode()


def decode_report(stored: bytes | None) -> WorkerReport:
    """Read a stored report. What is missing or does not fit takes its default."""
    try:
        return WorkerReport.model_validate(orjson.loads(stored or b"{}"))
    except orjson.JSONDecodeError:
        return WorkerReport()
