"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.errors import ConfigError, SchedulerError


class Level(StrEnum):
    """How bad a finding is. `fail`: prompts cannot be served, or can be lost in normal use."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    subject: str
    """What was checked."""
    message: str
    """What was found."""
    fix: str = ""
    """What to do about it."""
    mistake: bool = False
    """Whether the settings are wrong, so that a worker process would not start with them."""

    @classmethod
    def failure(cls, subject: str, error: SchedulerError) -> Finding:
        """The finding of a check that raised an error."""
        message = str(error).removeprefix(f"{subject}: ")
        return cls(Level.FAIL, subject, message, mistake=isinstance(error, ConfigError))
