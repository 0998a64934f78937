"""Reads answers in OpenAI's format with several choices, log probabilities or token ids.

These come with every token. The readers of a single choice do not look for them, so a request that asks for
none pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from workers.base import (
    MAX_CHOICES,
    TOKEN_DETAILS,
    ChoiceEnd,
    Completed,
    Generation,
    MemberFailed,
    Output,
    Piece,
)
from workers.calls import NO_HEAD
from workers.errors import RequestRejected
from workers.extra_fields import gather, unnamed
from workers.openai_chat_answer import ChatReader
from workers.openai_completion_answer import CompletionReader

ChoiceReader: TypeAlias = ChatReader | CompletionReader

_TOKENS = frozenset({"token_ids"})  # these come with every chunk, the rest of a choice with its last


def choices_of(generation: Generation) -> int:
    """How many choices a request asks for.

    Raises:
        RequestRejected: `n` is not a valid number of choices.
    """
    count = _asked(generation, "n")
    if count is None:
        return 1
    if type(count) is not int or not 0 < count <= MAX_CHOICES:
        raise RequestRejected(f"n: give a whole number from 1 to {MAX_CHOICES}")
    return count


def chat_reader(generation: Generation) -> ChatReader | ChoicesReader:
    """The reader for the answer to a chat."""
    return ChoicesReader(ChatReader, choices_of(generation)) if _needs_choices(generation) else ChatReader()


def completion_reader(batch: Sequence[Generation]) -> CompletionReader | ChoicesReader:
    """The reader for the answers to plain prompts."""
    if len(batch) == 1 and _needs_choices(batch[0]):
        return ChoicesReader(_one_prompt, choices_of(batch[0]))
    return CompletionReader(len(batch))


def _one_prompt() -> CompletionReader:
    return CompletionReader(1)


def _needs_choices(generation: Generation) -> bool:
    if not generation.params and not generation.extra_body:
        return False
    asked = (_asked(generation, name) for name in TOKEN_DETAILS)
    # 0 log probabilities are those of the tokens alone.
    return choices_of(generation) > 1 or any(said is not None and said is not False for said in asked)


def _asked(generation: Generation, name: str) -> Any:
    said = generation.params.get(name)
    return generation.extra_body.get(name) if said is None else said


class ChoicesReader:
    """Reads one prompt's choices, each with its own reader. The usage covers all of them together."""

    __slots__ = ("_choices", "_extra", "_finished", "_make", "_readers", "_shared", "head", "total")

    complete = False

    def __init__(self, make: Callable[[], ChoiceReader], choices: int) -> None:
        self.total = 1
        self.head: Mapping[str, Any] = NO_HEAD
        self._make = make
        self._choices = choices
        self._readers: dict[int, ChoiceReader] = {0: make()}
        self._extra: dict[int, dict[str, Any]] = {}
        self._shared: set[str] = set()  # the names of what is said about all choices
        self._finished = False

    @property
    def missing(self) -> int:
        """1 until all choices have a finish reason."""
        if self._finished:
            return 0
        ended = len(self._readers) >= self._choices
        return int(not ended or any(reader.missing for reader in self._readers.values()))

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """Read one event: the pieces and the end that it brings."""
        self._shared |= event.keys()
        choices = event.get("choices")
        if not choices:
            return self._readers[0].read(event)
        outputs: list[Output] = []
        for choice in choices:
            if choice:
                outputs += self._read_choice(choice, event)
        return outputs

    def finish(self) -> Sequence[Output]:
        """Return one end for all choices, after the pieces that had to wait for it."""
        pieces: list[Output] = []
        ends: list[tuple[int, Completed]] = []
        for index, reader in sorted(self._readers.items()):
            for output in reader.finish():
                if isinstance(output, Piece):
                    pieces.append(output._replace(choice=index))
                elif isinstance(output, MemberFailed):
                    self._finished = True
                    return (*pieces, output)
                else:
                    ends.append((index, output))
        if not ends:
            return ()
        self._finished = True
        return (*pieces, self._completed(ends))

    def _read_choice(self, choice: Mapping[str, Any], event: Mapping[str, Any]) -> Sequence[Output]:
        index = choice.get("index") or 0
        if type(index) is not int or not 0 <= index < self._choices:
            raise ValueError("there is no such choice")
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = self._make()
        outputs = reader.read({**event, "choices": ({**choice, "index": 0},)})
        if tokens := {name: choice[name] for name in _TOKENS if choice.get(name)}:
            gather(self._extra.setdefault(index, {}), tokens)
        pieces = [output._replace(choice=index) for output in outputs if isinstance(output, Piece)]
        return _with_logprobs(pieces, index, choice["logprobs"]) if choice.get("logprobs") else pieces

    def _end(self, index: int, completed: Completed) -> ChoiceEnd:
        extra = {**unnamed(completed.extra or {}, self._shared), **self._extra.get(index, {})}
        return ChoiceEnd(index, completed.finish_reason, completed.raw_finish_reason, extra or None)

    def _completed(self, ends: Sequence[tuple[int, Completed]]) -> Completed:
        first = ends[0][1]
        extra = {**(first.extra or {}), **self._extra.get(0, {}), **self.head}
        # The last event of each choice has it, each time for all choices so far.
        usage = max((end.usage for _, end in ends), key=lambda usage: usage.output_tokens or 0)
        several = tuple(self._end(*end) for end in ends) if self._choices > 1 else ()
        return first._replace(usage=usage, extra=extra or None, choices=several)


def _with_logprobs(pieces: list[Piece], index: int, logprobs: Any) -> list[Piece]:
    """The pieces of a chunk, the first with its log probabilities; a token may have no text yet."""
    first = pieces[0] if pieces else Piece(0, choice=index)
    return [first._replace(extra={**(first.extra or {}), "logprobs": logprobs}), *pieces[1:]]
