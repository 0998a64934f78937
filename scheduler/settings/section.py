"""What all sections of the settings share: frozen, strict about names and types."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

DAY_S = 86_400.0
MOST = 1_000_000_000
"""Bounds of durations and of counts a minute: what is beyond them is a slip of the hand."""


class Strict(BaseModel):
    """Refuses what pydantic would take for a number or a list, and its writer did not mean."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_other_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in {int, float, int | None, float | None}:
            raise ValueError("give a number, not true or false")
        return value


class Section(Strict):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
