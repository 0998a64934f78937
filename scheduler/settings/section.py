"""The base of all sections of the settings: immutable, and strict about names and types."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

DAY_S = 86_400.0
MOST = 1_000_000_000
"""Bounds of durations and of counts: larger values are typing errors."""


class Strict(BaseModel):
    """Refuses true and false where pydantic would take them for 1 and 0."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_other_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in {int, float, int | None, float | None}:
            raise ValueError("give a number, not true or false")
        return value


class Section(Strict):
    """One table of the file: immutable, without unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
