"""The content blocks of one Anthropic message, assembled in the form that the API takes back.

Source: https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson

THINKING = frozenset({"thinking", "redacted_thinking"})

# The order that OpenAI's format can express: thinking, then one text, then calls.
_ORDER = {"thinking": 0, "redacted_thinking": 0, "text": 1, "tool_use": 2}
_FIELDS = {
    "text": frozenset({"type", "text"}),
    "tool_use": frozenset({"type", "id", "name", "input"}),
}
# The field of the block that a delta extends, by the field of the delta.
_GROWS = {"text": "text", "thinking": "thinking", "content": "content"}


class ContentBlocks:
    """The blocks of one message, in order."""

    __slots__ = ("_blocks", "_inputs", "_told")

    def __init__(self) -> None:
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, list[str]] = {}
        self._told: set[int] = set()

    def start(self, at: int, block: Mapping[str, Any]) -> None:
        """A block begins."""
        self._blocks[at] = dict(block)

    def add(self, at: int, delta: Mapping[str, Any]) -> None:
        """A block continues. A delta of a block that has not begun is ignored."""
        if (block := self._blocks.get(at)) is None:
            return
        for name, value in delta.items():
            if name == "partial_json":
                self._inputs.setdefault(at, []).append(value or "")
            elif name == "citation":
                block["citations"] = [*(block.get("citations") or ()), value]
            elif name in _GROWS and isinstance(value, str):
                block[name] = (block.get(name) or "") + value
            elif name != "type":
                block[name] = value

    def stop(self, at: int) -> Mapping[str, Any] | None:
        """A block has ended; returns it if it is thinking that has not been returned before."""
        block = self._blocks.get(at)
        if block is None or block.get("type") not in THINKING or at in self._told:
            return None
        self._told.add(at)
        return block

    def unlike_openais(self) -> Sequence[Mapping[str, Any]]:
        """All blocks, if OpenAI's format would lose some of them or their order; otherwise none."""
        blocks = [self._whole(at) for at in sorted(self._blocks)]
        places = [_ORDER.get(str(block.get("type")), -1) for block in blocks]
        if -1 in places or places != sorted(places) or places.count(1) > 1:
            return blocks
        return blocks if any(_has_more(block) for block in blocks) else ()

    def _whole(self, at: int) -> Mapping[str, Any]:
        block = self._blocks[at]
        if text := "".join(self._inputs.get(at, ())):
            with suppress(ValueError):  # the answer was cut in the middle
                block["input"] = orjson.loads(text)
        return block


def _has_more(block: Mapping[str, Any]) -> bool:
    fields = _FIELDS.get(str(block["type"]))
    return fields is not None and any(value for name, value in block.items() if name not in fields)
