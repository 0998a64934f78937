"""Log lines: JSON for machines, short lines for people; with the ids of the attempt that they come from.

An exception that foreign code raised is logged by its type and the places that it came through. Its words
stay out: they may repeat a prompt or a key. At the level debug they are there.

    an attempt ── speak_of(job) ──▶ context variable ──▶ formatter or IdFilter ──▶ job, tenant, attempt, trace
"""

from scheduler.logs.exceptions import describe_error, traced, wordless
from scheduler.logs.formats import HumanFormatter, JsonFormatter
from scheduler.logs.ids import (
    IDS,
    AttemptIds,
    IdFilter,
    attempt_ids,
    identify,
    ids_of,
    speak_for,
    speak_of,
    trace_ids,
)
from scheduler.logs.setup import HOSTED, OURS, LogFormat, LogLevel, change_level, is_ours, set_up

__all__ = [
    "HOSTED",
    "IDS",
    "OURS",
    "AttemptIds",
    "HumanFormatter",
    "IdFilter",
    "JsonFormatter",
    "LogFormat",
    "LogLevel",
    "attempt_ids",
    "change_level",
    "describe_error",
    "identify",
    "ids_of",
    "is_ours",
    "set_up",
    "speak_for",
    "speak_of",
    "trace_ids",
    "traced",
    "wordless",
]
