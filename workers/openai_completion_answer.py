"""Reads the stream of legacy completions in OpenAI's format, for one prompt or a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.base import Output, Piece
from workers.calls import NO_HEAD
from workers.extra_fields import unnamed
from workers.finish_reasons import UNKNOWN, ended, finish_reason, later
from workers.openai_content import IN_EVERY_CHUNK, NAMED, NAMED_IN_CHOICE, model_name, split_reasoning
from workers.openai_errors import raise_if_error, raise_if_error_in_choice
from workers.openai_usage import NO_USAGE, UsageCounts, read_usage


class CompletionReader:
    """Separates the streamed answers to one or several plain prompts.

    The usage of a single prompt comes last. In a list, if the server sends it, each member's usage comes with
    its finish reason; the sum for the whole list is of no use.
    """

    __slots__ = (
        "_extra",
        "_model",
        "_reason",
        "_said_reason",
        "_spoken",
        "_usage",
        "_waiting",
        "head",
        "total",
    )

    complete = False

    def __init__(self, total: int) -> None:
        self.total = total
        self._waiting = set(range(total))
        self._spoken: set[int] = set()
        self._reason: str | None = None  # a single prompt's
        self._said_reason: Any = None
        self._model: str | None = None
        self._usage = UsageCounts()
        self._extra: dict[str, Any] = {}  # a single prompt's
        self.head: Mapping[str, Any] = NO_HEAD

    @property
    def missing(self) -> int:
        """The prompts without a finish reason."""
        return len(self._waiting)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """Read one event: the pieces and the end that it brings."""
        if self.total == 1 and (usage := event.get("usage")):
            self._usage.add(usage)
        if not (choices := event.get("choices")):
            return self._read_aside(event)
        outputs: list[Output] = []
        for choice in choices:
            member = choice.get("index")
            text = choice.get("text")
            if type(text) is not str:
                text = _text_elsewhere(choice, text)
            if member not in self._waiting:
                member = self._member(member, text)
            if text:
                self._spoken.add(member)
                outputs.append(Piece(member, text))
            if reason := choice.get("finish_reason"):
                talks_on = bool(text) and self._reason is not None
                self._read_reason(member, reason, choice, event, outputs)
                if talks_on:  # some servers send a finish reason in every chunk: then it is not the end
                    self._waiting.add(member)
        return outputs

    def finish(self) -> Sequence[Output]:
        """Return the end of a single prompt, or the missing ends of members that have content."""
        if self.total == 1:
            if self._reason is None and not self._spoken:
                return ()
            self._waiting.clear()
            extra = {**self._extra, **self.head} if self.head else self._extra
            usage = self._usage.counts
            return (
                ended(0, self._reason or UNKNOWN, usage, self._model, said=self._said_reason, extra=extra),
            )
        unended = sorted(self._waiting & self._spoken)
        self._waiting.difference_update(unended)
        return [ended(member, UNKNOWN, NO_USAGE, self._model) for member in unended]

    def _member(self, said: Any, text: Any) -> int:
        """The prompt of an index that is no waiting one's: it has ended, or the server counts otherwise."""
        if isinstance(said, str) and said.isascii() and said.isdigit():
            said = int(said[:9])
        if said is None and self.total == 1:
            return 0
        if not isinstance(said, int) or not 0 <= said < self.total:
            raise ValueError("there is no such member")
        if text and self.total > 1 and said not in self._waiting:
            raise ValueError("it has ended before")
        return said

    def _read_reason(
        self,
        member: int,
        said: Any,
        choice: Mapping[str, Any],
        event: Mapping[str, Any],
        outputs: list[Output],
    ) -> None:
        if (reason := finish_reason(said)) is None:
            return
        raise_if_error_in_choice(choice)
        self._model = model_name(event.get("model")) or self._model
        extra = self._extra if self.total == 1 else {}
        extra |= unnamed(event, NAMED) | unnamed(choice, NAMED_IN_CHOICE)
        if self.total == 1:
            self._reason = later(self._reason, reason)
            if self._reason == reason:
                self._said_reason = said
            self._usage.add_elsewhere(choice, event)
            self._waiting.clear()
        elif member in self._waiting:
            self._waiting.remove(member)
            usage = read_usage(choice.get("usage") or event.get("usage"))
            extra |= self.head
            outputs.append(ended(member, reason, usage, self._model, said=said, extra=extra))

    def _read_aside(self, event: Mapping[str, Any]) -> Sequence[Output]:
        raise_if_error(event)
        if self.total == 1:
            self._usage.add_elsewhere({}, event)
            if not event.keys() <= IN_EVERY_CHUNK:
                self._extra |= unnamed(event, NAMED)
        return ()


def _text_elsewhere(choice: Mapping[str, Any], text: Any) -> str:
    """Find the text of a legacy completion that comes in parts, or in the format of a chat."""
    if text is None and (said := choice.get("delta") or choice.get("message")):
        text = said.get("content")
    return "".join(split_reasoning(text))
