"""The parts of a call that all adapters share: reading an answer, whole answers, parameters."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, Protocol

from workers.base import Generation, Output, Piece
from workers.errors import RequestRejected
from workers.extra_fields import gather

SHORT_TOKENS = 64
"""The longest answer, in tokens, that is not streamed on the wire if the request wants it whole.

A stream costs the server an event for each token, which is more work than a short answer itself; and there is
little left to stop if the call is cancelled.
"""

SIGN_OF_LIFE_S = 1.0
"""How often a whole answer that is streamed on the wire yields a piece, in seconds."""

NO_HEAD: Mapping[str, Any] = MappingProxyType({})
"""The head of an answer that says nothing about it."""

MALFORMED = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
"""The exceptions that reading the fields of a malformed answer raises."""


class ReportedError(Exception):
    """The server reported an error inside an answer."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__()
        self.answer = answer


class AnswerReader(Protocol):
    """Turns the events of one answer into outputs. It may raise the exceptions in `MALFORMED`."""

    total: int
    """How many prompts the call has."""
    head: Mapping[str, Any]
    """What the head of the response says about the answer: set before the first event."""

    @property
    def missing(self) -> int:
        """How many prompts have no end yet."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the rest of the stream can be ignored."""
        ...

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """The outputs of one event.

        Raises:
            ReportedError: the event is an error.
        """
        ...

    def finish(self) -> Sequence[Output]:
        """The ends that had to wait for the end of the stream.

        Called if none is `missing`, or if the server has declared the end of the stream: then a prompt that
        has an answer but no end may be given one.
        """
        ...


def is_short(generation: Generation) -> bool:
    """Whether the request bounds its answer to `SHORT_TOKENS`."""
    tokens = generation.params.get("max_tokens")
    return isinstance(tokens, int) and tokens <= SHORT_TOKENS


async def whole(outputs: AsyncGenerator[Output, None]) -> AsyncGenerator[Output, None]:
    """The same answers in one piece each, or in one piece for every `SIGN_OF_LIFE_S`.

    So an answer that takes minutes can be told from one that does not come.
    """
    pieces: defaultdict[tuple[int, int], list[Piece]] = defaultdict(list)
    clock = asyncio.get_running_loop().time
    said_at = clock()
    async with aclosing(outputs):
        async for output in outputs:
            if isinstance(output, Piece):
                pieces[output.member, output.choice].append(output)
                if clock() < said_at + SIGN_OF_LIFE_S:
                    continue
                said_at = clock()
                for key in tuple(pieces):
                    yield _joined(*key, pieces.pop(key))
                continue
            for key in [key for key in pieces if key[0] == output.member]:
                yield _joined(*key, pieces.pop(key))
            yield output


def refuse_tools(generation: Generation) -> None:
    """Check that a plain completion has no tools.

    Raises:
        RequestRejected: it has some.
    """
    if generation.tools or generation.tool_choice is not None:
        raise RequestRejected("tools: need a chat; give messages instead of prompt")


def refuse_chats_in_a_list(batch: Sequence[Generation]) -> None:
    """Check that only plain prompts share the call.

    Raises:
        ValueError: a chat is among them; the caller is at fault.
    """
    if len(batch) > 1 and batch[0].messages is not None:
        raise ValueError("takes one chat in a call; lists are for plain prompts")


def _joined(member: int, choice: int, pieces: Sequence[Piece]) -> Piece:
    extra: dict[str, Any] = {}
    for piece in pieces:
        if piece.extra:
            gather(extra, piece.extra)
    return Piece(
        member,
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(call for piece in pieces for call in piece.tool_calls),
        choice,
        extra or None,
    )
