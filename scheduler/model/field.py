"""Types of the fields of a request, and the base of all models."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

from scheduler.model.priority import Priority

MAX_DURATION_S = 10 * 365 * 86_400.0
NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"


def _utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid UTF-8: lone surrogate at character {error.start}") from None
    return value


def _seconds(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _level(value: object) -> object:
    return int(value) if isinstance(value, Priority) else value


Text: TypeAlias = Annotated[StrictStr, AfterValidator(_utf8)]
Name: TypeAlias = Annotated[StrictStr, Field(pattern=rf"^{NAME}$")]
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Duration: TypeAlias = Annotated[
    float, BeforeValidator(_seconds), Field(strict=True, allow_inf_nan=False, le=MAX_DURATION_S)
]
Level: TypeAlias = Annotated[StrictInt, BeforeValidator(_level), Field(ge=0, le=9)]


class Frozen(BaseModel):
    """The base of all models: immutable, without unknown fields, and silent about wrong values."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
