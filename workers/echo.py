"""A model worker without a model: it says the prompt again, word by word.

For trying things out, for tests, and for measuring everything but a model.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from workers.base import (
    Capabilities,
    Completed,
    EndpointConfig,
    Generation,
    Health,
    Load,
    MemberFailed,
    Output,
    Piece,
    TokenUsage,
)
from workers.errors import RequestRejected, WorkerError, WorkerTimeout, WorkerUnavailable
from workers.options import count_option, number_option, refuse_unknown_options, text_option

OPTIONS = ("delay_s", "first_delay_s", "failure_rate", "fail_text", "capacity")

# White space goes with the word behind it, as in most tokenizers; at the very end with the word before it.
_WORD = re.compile(r"\s*\S+(?:\s+\Z)?|\s+")
_WORDS_PER_TURN = 1024


@dataclass(slots=True)
class _Answer:
    member: int
    pieces: list[str]
    finish_reason: str
    usage: TokenUsage


class _Limit(NamedTuple):
    name: str
    seconds: float


_seconds = attrgetter("seconds")


class _End:
    """When a call is over, by a limit of the whole of it."""

    def __init__(self, limit: _Limit) -> None:
        self.limit = limit
        self._at = time.monotonic() + limit.seconds

    def left(self) -> _Limit:
        """What is left of the limit."""
        return _Limit(self.limit.name, self._at - time.monotonic())


class NoServer:
    """What a model worker without a server says of itself: `model` is its name, `capacity` an option."""

    def __init__(self, model: str, capacity: int | None) -> None:
        self._model = model
        self._capacity = capacity

    async def health(self) -> Health:
        """Always ready."""
        return Health(ready=True, models=(self._model,))

    async def capacity(self) -> int | None:
        """What the option `capacity` says; None without it."""
        return self._capacity

    async def load(self) -> Load | None:
        """Nothing: it has no queue."""
        return None

    async def aclose(self) -> None:
        """There is nothing to close."""


class EchoWorker(NoServer):
    """Answers with the prompt, or with the text of the last user message; a word counts as a token.

    Options: `first_delay_s` before the first word and `delay_s` between words, in seconds; `failure_rate`,
    the share (0 to 1) of prompts that fail so that another attempt may succeed; `fail_text`, a text that gets
    every prompt refused that has it; `capacity`, the answer of `capacity()`.
    """

    def __init__(self, config: EndpointConfig, *, chance: Callable[[], float] = random.random) -> None:
        refuse_unknown_options(config, OPTIONS)
        super().__init__(config.model or "echo", count_option(config, "capacity"))
        whole = _Limit("timeout_s", config.timeout_s)
        self._whole = whole
        self._first = min(_Limit("first_token_timeout_s", config.first_token_timeout_s), whole, key=_seconds)
        self._idle = min(_Limit("idle_timeout_s", config.idle_timeout_s), whole, key=_seconds)
        self._total = _Limit("total_timeout_s", config.total_timeout_s or math.inf)
        self._delay_s = number_option(config, "delay_s", 0.0)
        self._first_delay_s = number_option(config, "first_delay_s", 0.0)
        self._failure_rate = number_option(config, "failure_rate", 0.0, high=1.0)
        self._fail_text = text_option(config, "fail_text")
        self._chance = chance

    @property
    def capabilities(self) -> Capabilities:
        """Lists and chat; no tools, no priorities."""
        return Capabilities(lists=True, streaming=True, chat=True, tools=False, priority=False)

    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Run a batch; see `GenerationWorker.generate`. Members speak in turns, a word each."""
        stream = batch[0].stream
        end = _End(self._total if stream else min(self._total, self._whole, key=_seconds))
        await _pause(self._first_delay_s, self._first, end)
        answers: list[_Answer] = []
        for member, generation in enumerate(batch):
            text = _text(generation)
            if error := self._failure(text):
                yield MemberFailed(member, error)
            else:
                answers.append(_answer(member, text, generation.params.get("max_tokens")))
        if not stream:
            await self._say_inwardly(answers, end)
        position = 0
        while answers:
            speaking = []
            for answer in answers:
                if position < len(answer.pieces):
                    yield Piece(answer.member, answer.pieces[position])
                if position + 1 < len(answer.pieces):
                    speaking.append(answer)
                else:
                    yield Completed(answer.member, answer.finish_reason, answer.usage, self._model)
            answers = speaking
            position += 1
            if answers and self._delay_s:
                await _pause(self._delay_s, self._idle, end)
            elif position % _WORDS_PER_TURN == 0:
                await asyncio.sleep(0)  # a very long prompt must not keep the event loop from others

    async def _say_inwardly(self, answers: list[_Answer], end: _End) -> None:
        longest = max((len(answer.pieces) for answer in answers), default=0)
        await _pause(self._delay_s * max(0, longest - 1), self._whole, end)
        for answer in answers:
            answer.pieces = ["".join(answer.pieces)] if answer.pieces else []

    def _failure(self, text: str) -> WorkerError | None:
        if self._fail_text and self._fail_text in text:
            return RequestRejected("echo: the prompt has the text that options.fail_text refuses")
        if self._failure_rate and self._chance() < self._failure_rate:
            return WorkerUnavailable(
                f"echo: failed by chance, as options.failure_rate = {self._failure_rate:g} asks"
            )
        return None


async def _pause(pause_s: float, limit: _Limit, end: _End) -> None:
    """Say nothing for a while, up to the limit of that, or the end of the call.

    Raises:
        WorkerTimeout: it would have been longer.
    """
    if not pause_s:
        return
    left = end.left()
    first = min(limit, left, key=_seconds)
    await asyncio.sleep(min(pause_s, first.seconds))
    if pause_s > first.seconds:
        limit = end.limit if first is left else limit
        raise WorkerTimeout(f"echo: no more within {limit.name} = {limit.seconds:g}")


def _answer(member: int, text: str, max_tokens: int | None) -> _Answer:
    words: list[str] = _WORD.findall(text)
    said = words if max_tokens is None else words[:max_tokens]
    finish_reason = "stop" if len(said) == len(words) else "length"
    return _Answer(member, said, finish_reason, TokenUsage(len(words), len(said)))


def _text(generation: Generation) -> str:
    if generation.prompt is not None:
        return generation.prompt
    if generation.token_ids is not None:
        return " ".join(map(str, generation.token_ids))
    messages = generation.messages or ()
    said_by_user = (message for message in reversed(messages) if message.get("role") == "user")
    return _content(next(said_by_user, {}))


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
