"""Errors inside answers in OpenAI's format, which servers and gateways send with a status of 200."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.calls import ReportedError
from workers.refusals import refusal_in_answer

_CHUNK_FIELDS = frozenset({"choices", "object", "usage"})
_SUCCESSES = frozenset({"0", "200", "ok", "success"})
_ERROR_CODES = ("code", "error_code", "status_code")
_ERROR_WORDS = ("message", "msg", "error_msg", "detail", "text")


def raise_if_error(event: Mapping[str, Any]) -> None:
    """Raise the error in an event without an answer.

    Raises:
        ReportedError: there is one.
    """
    if event.get("object") == "error" or event.get("errors") or event.get("success") is False:
        raise ReportedError(event)
    base, groq = event.get("base_resp"), event.get("x_groq")  # MiniMax; Groq
    if isinstance(base, Mapping) and base.get("status_code"):
        raise ReportedError(event)
    if isinstance(groq, Mapping) and groq.get("error"):
        raise ReportedError(groq)
    has_words = any(isinstance(event.get(key), str) and event[key] for key in _ERROR_WORDS)
    if not has_words or not event.keys().isdisjoint(_CHUNK_FIELDS):
        return
    codes = [code for key in _ERROR_CODES if (code := event.get(key)) is not None]
    if not any(isinstance(code, str | int) and str(code).lower() in _SUCCESSES for code in codes):
        raise ReportedError(event)


def raise_if_error_in_choice(choice: Mapping[str, Any]) -> None:
    """Raise the error that OpenRouter puts into the choice.

    Raises:
        ReportedError: there is one.
    """
    if choice.get("error") and refusal_in_answer(choice) is not None:
        raise ReportedError({"error": choice["error"]})
