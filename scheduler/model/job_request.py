"""What requests of all kinds of work have in common: where they go, and when."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StrictInt, StrictStr, ValidationError, model_validator

from scheduler.model.field import Duration, Frozen, Level, Name, Text
from scheduler.model.kind import Kind
from scheduler.model.priority import Priority
from scheduler.model.refusal import invalid_request

MAX_DEDUP_KEY_BYTES = 1024
MAX_REQUEST_BYTES = 8 * 1024 * 1024
DEFAULT_TENANT = "default"


class DedupMode(StrEnum):
    """What a request with a dedup key that is in use gets."""

    UNTIL_FINISHED = "until_finished"
    """It joins the job while that waits or runs."""
    WINDOW = "window"
    """The same, and for `dedup_ttl_s` after the end it gets the finished answer."""
    REPLACE = "replace"
    """It takes the place of the waiting job, which is cancelled."""


class JobRequest(Frozen):
    """The base of `PromptRequest`, `EmbeddingRequest` and `RerankRequest`.

    Durations are in seconds or a `timedelta`, and count from the enqueue.
    """

    kind: ClassVar[Kind]
    """The kind of work that it asks for."""
    parameters: ClassVar[tuple[str, ...]] = ()
    """The names in `params`, to be suggested for an unknown field."""

    model: Name | None = None
    """The route; may be left out if there is only one for this kind of work."""
    priority: Level = int(Priority.NORMAL)
    """0 to 9; higher is more urgent."""
    dedup_key: Text | None = None
    """Requests with equal keys share a job; `"auto"` makes the key from all that changes the answer."""
    dedup: DedupMode = DedupMode.UNTIL_FINISHED
    """What a request with a key that is in use gets."""
    tenant: Name = DEFAULT_TENANT
    """The tenant whose limits apply, and whose dedup keys these are."""
    session: Annotated[Text, Field(max_length=256)] | None = None
    """Requests of one session go to the same endpoint, if possible."""
    deadline_s: Annotated[Duration, Field(gt=0)] | None = None
    """If the job has not ended by then, it expires."""
    delay_s: Annotated[Duration, Field(ge=0)] | None = None
    """The job waits this long before it may run."""
    max_attempts: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    """Failures after which the job has failed for good; None: the route's setting."""
    max_waits: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    """Attempts that may end at no cost because endpoints asked to wait; None: the route's setting."""
    result_ttl_s: Annotated[Duration, Field(ge=1)] | None = None
    """How long to keep the result after the job's end; None: the queue's setting."""
    extra_body: dict[str, Any] | None = None
    """Fields for the engine that have no name here, passed on unchanged."""
    metadata: dict[str, Any] | None = None
    """Your own data; templates and your own stages see it."""
    job_id: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")] | None = None
    """An id of yours makes the enqueue idempotent: if the id exists, you get that job."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_content()
        if self.dedup_key is not None and not 1 <= len(self.dedup_key.encode()) <= MAX_DEDUP_KEY_BYTES:
            raise ValueError(
                f"dedup_key: has {len(self.dedup_key.encode()):,} bytes; give 1 to {MAX_DEDUP_KEY_BYTES:,}, "
                "for example a hash of the input"
            )
        if self.dedup is not DedupMode.UNTIL_FINISHED and self.dedup_key is None:
            raise ValueError(f"dedup: mode {self.dedup.value} needs a dedup_key")
        return self

    def _check_content(self) -> None:
        """Check the fields that this kind of request adds, as a part of the one validator.

        Raises:
            ValueError: one is wrong.
        """

    @classmethod
    def parse(cls, /, **fields: Any) -> Self:
        """Make a request from keyword arguments.

        Raises:
            InvalidRequest: a field is wrong; the message names it and says what to give.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid_request(error, fields=tuple(cls.model_fields), parameters=cls.parameters) from None
