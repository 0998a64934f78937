r"""Makes untrusted text safe to show: it cannot control a terminal, forge a line or hide characters.

Unsafe characters are shown as escapes: `\x1b`, `\u202e`. Use `one_line` for names and messages, `paragraphs`
for answers, and `json_text` for JSON, which stays JSON with the same value.
"""

from __future__ import annotations

import re

# C0 and C1 controls with DEL; line and paragraph separators; bidirectional embeddings and overrides;
# deprecated formats, annotations, the byte order mark, tags, lone surrogates.
_COMMANDS = (
    r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff\ud800-\udfff"
)
# Invisible, and misleading in a name: soft hyphen, joiners and fillers, direction marks, zero-width spaces.
_INVISIBLE = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2060-\u2065\u3164\uffa0"
)

# Scripts and emoji need joiners between their own characters.
_JOINER = r"(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"

_IN_A_LINE = re.compile(f"[{_COMMANDS}{_INVISIBLE}]|{_JOINER}")
_IN_PARAGRAPHS = re.compile(rf"(?![\n\t])[{_COMMANDS}]")
_IN_JSON = re.compile(rf"(?![\x00-\x1f])[{_COMMANDS}{_INVISIBLE}\u200c\u200d]")


def one_line(text: str) -> str:
    """Escape a name or a message, so that it stays on one line."""
    return text if _is_plain(text) else _IN_A_LINE.sub(_escape, text)


def paragraphs(text: str) -> str:
    """Escape a text of several lines; keep line feeds, tabs and the invisible marks that scripts need."""
    return text if _is_plain(text) else _IN_PARAGRAPHS.sub(_escape, text.replace("\r\n", "\n"))


def json_text(document: bytes) -> bytes:
    """Write such characters in a UTF-8 JSON document as JSON escapes."""
    if document.isascii() and b"\x7f" not in document:
        return document
    return _IN_JSON.sub(_json_escape, document.decode()).encode()


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
