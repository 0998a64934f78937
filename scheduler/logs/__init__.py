"""Log lines, as JSON or short for people, with the ids of the attempt that they come from.

Exceptions of foreign code are logged with their type and stack. Their messages, which may repeat a prompt or
a key, appear only at the level debug.

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
