"""Converts the finish reasons of many servers to OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workers.base import Completed, MemberFailed, TokenUsage
from workers.errors import WorkerUnavailable

UNKNOWN = "unknown"
"""The answer has ended for an unknown reason."""

GIVEN_UP = "given up"
"""The engine has given up: its output so far is not an answer."""

# Only letters count: MAX_TOKENS, max-tokens and MaxTokens are one word.
_WORDS = {
    "stop": "stop end endturn eos eostoken endoftext stopsequence stopstring stoptoken stopword stopwords "
    "complete completed done finish finished normal success",
    "length": "length modellength maxtokens maxtoken maxlength maxnewtokens maxoutputtokens tokenlimit limit "
    "maxcompletiontokens contextlength contextlengthexceeded contextwindowexceeded errorlimit truncated "
    "modelcontextwindowexceeded incomplete pauseturn compaction",
    "tool_calls": "toolcalls toolcall tooluse functioncall functioncalls",
    "content_filter": "contentfilter contentfiltered safety imagesafety recitation imagerecitation blocklist "
    "blocked prohibitedcontent imageprohibitedcontent spii language refusal refused guardrailintervened "
    "sensitive moderation errortoxic modelarmor",
    GIVEN_UP: "abort aborted cancel cancelled canceled error failed failure networkerror servererror "
    "internalerror internalservererror engineerror insufficientsystemresource overloaded timeout "
    "malformedfunctioncall malformedresponse unexpectedtoolcall",
}
_REASONS = {word: reason for reason, words in _WORDS.items() for word in words.split()}
_NONE = frozenset({"", "none", "null", "unspecified"})
_MAX_WORD_CHARS = 100
_OTHER = re.compile("[^a-z0-9]")


def finish_reason(said: Any) -> str | None:
    """OpenAI's word for a server's finish reason; None if the server gave none.

    It is stop, length, tool_calls or content_filter; `GIVEN_UP`; or `UNKNOWN` for an unknown word, because an
    answer that may be cut must not look complete.
    """
    if isinstance(said, dict):
        said = said.get("type") or said.get("reason")
    if not said:
        return None
    word = _OTHER.sub("", str(said).lower()).removeprefix("finishreason")
    return None if word in _NONE else _REASONS.get(word, UNKNOWN)


def ended(
    member: int,
    reason: str,
    usage: TokenUsage,
    model: str | None,
    *,
    said: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> Completed | MemberFailed:
    """The end of one answer. `said` is the server's own finish reason, `extra` what else it says."""
    if reason == GIVEN_UP:
        error = WorkerUnavailable(f"the engine gave the answer up ({str(said)[:_MAX_WORD_CHARS]})")
        return MemberFailed(member, error)
    return Completed(member, reason, usage, model, None if said == reason else _word(said), extra or None)


def _word(said: Any) -> str | None:
    if isinstance(said, dict):
        said = said.get("type") or said.get("reason")
    return str(said)[:_MAX_WORD_CHARS] if said else None


def later(reason: str | None, said: str | None) -> str | None:
    """The one of two reasons that counts: neither stop nor a late error replaces a more specific reason."""
    if said is None or (reason in {"length", "tool_calls", "content_filter", GIVEN_UP}):
        return reason
    return reason if reason is not None and said in {UNKNOWN, GIVEN_UP} else said
