"""What adapters share in asking for an answer and in reading it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from workers.base import Generation, Output, Piece
from workers.errors import RequestRejected, WorkerError
from workers.http import HttpEndpoint
from workers.optional_fields import NO_OPTIONAL_FIELDS, Attempts, OptionalFields
from workers.refusals import refusal_of
from workers.surrogates import SurrogateJoiner

SHORT_TOKENS = 64
"""Up to so many tokens an answer that is wanted whole is not streamed on the wire either.

A stream costs the server an event for each token, which is more work than a short answer itself; and there is
little that would run on if the call were cancelled.
"""

SIGN_OF_LIFE_S = 1.0
"""How often something is seen of an answer that is wanted whole and is streamed on the wire."""

MALFORMED = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
"""What reading the fields of an answer raises when they are not what they should be."""


class ReportedError(Exception):
    """The server reported an error in a form of its own kind of answer."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__()
        self.answer = answer


class AnswerReader(Protocol):
    """Makes outputs of the events of one answer; what it raises out of `MALFORMED` is the server's mistake.

    `missing` of `total` prompts have no end yet; `complete`: nothing more needs to be read.
    """

    total: int

    @property
    def missing(self) -> int: ...

    @property
    def complete(self) -> bool: ...

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says.

        Raises:
            ReportedError: it is an error.
        """
        ...

    def finish(self) -> Sequence[Output]:
        """The ends that had to wait for the end of the stream.

        Called when none is `missing`, or when the server has said that this is the end: then a prompt that
        has an answer and no end may be given one.
        """
        ...


async def answers(
    endpoint: HttpEndpoint,
    path: str,
    body: Mapping[str, Any],
    reader: AnswerReader,
    *,
    headers: Mapping[str, str] | None = None,
    optional: OptionalFields = NO_OPTIONAL_FIELDS,
) -> AsyncGenerator[Output, None]:
    """Make one call and yield what `reader` makes of its events.

    It is made again without those `optional` fields that the server refuses. Once all prompts have their ends
    no failure harms them.

    Raises:
        WorkerError: the call failed, was cut off, or its answer is malformed.
    """
    attempts = Attempts(body, optional)
    joiner = SurrogateJoiner()
    again = True
    said_done = False
    while again:
        again = began = False
        try:
            async with endpoint.stream(path, attempts.body, headers=headers) as stream:
                attempts.accepted()
                async for events in stream:
                    for event in events:
                        outputs = _read(endpoint, reader, event)
                        for output in joiner.mend(outputs) if stream.lenient else outputs:
                            began = True
                            stream.output_came()
                            yield output
                    if reader.complete:
                        return
                    if not reader.missing:
                        stream.answer_ended()
                said_done = stream.said_done
        except WorkerError as error:
            if reader.missing:
                again = not began and attempts.give_way(error)
                if not again:
                    raise
    if said_done or not reader.missing:
        for output in joiner.mend(reader.finish()):
            yield output
    if reader.missing:
        raise endpoint.cut_off(reader.missing, reader.total)


def is_short(generation: Generation) -> bool:
    """Whether the request bounds its answer to `SHORT_TOKENS`."""
    tokens = generation.params.get("max_tokens")
    return isinstance(tokens, int) and tokens <= SHORT_TOKENS


async def answers_at_once(
    endpoint: HttpEndpoint,
    path: str,
    body: Mapping[str, Any],
    reader: AnswerReader,
    events: Callable[[Any], Iterable[Mapping[str, Any]]],
    *,
    headers: Mapping[str, str] | None = None,
    optional: OptionalFields = NO_OPTIONAL_FIELDS,
) -> AsyncGenerator[Output, None]:
    """The same without a stream: `events` are what `reader` would have read, made of the whole answer.

    Raises:
        WorkerError: the call failed, or its answer is malformed.
    """
    answer = await _posted(endpoint, path, Attempts(body, optional), headers)
    try:
        parts = tuple(events(answer))
    except MALFORMED:
        raise endpoint.malformed() from None
    outputs = [output for event in parts for output in _read(endpoint, reader, event)]
    for output in SurrogateJoiner().mend((*outputs, *reader.finish())):
        yield output
    if reader.missing:
        raise endpoint.cut_off(reader.missing, reader.total)


def _read(endpoint: HttpEndpoint, reader: AnswerReader, event: Mapping[str, Any]) -> Sequence[Output]:
    try:
        return reader.read(event)
    except ReportedError as reported:
        raise endpoint.error(refusal_of(reported.answer)) from None
    except MALFORMED:
        raise endpoint.malformed() from None


async def _posted(
    endpoint: HttpEndpoint, path: str, attempts: Attempts, headers: Mapping[str, str] | None
) -> Any:
    while True:
        try:
            answer = await endpoint.post(path, attempts.body, headers=headers)
        except WorkerError as error:
            if not attempts.give_way(error):
                raise
        else:
            attempts.accepted()
            return answer


async def whole(outputs: AsyncGenerator[Output, None]) -> AsyncGenerator[Output, None]:
    """The same answers, each in one piece, or in one for each `SIGN_OF_LIFE_S` that it takes.

    Whoever reads an answer that takes minutes can thus tell it from one that does not come.
    """
    pieces: defaultdict[int, list[Piece]] = defaultdict(list)
    clock = asyncio.get_running_loop().time
    said_at = clock()
    async with aclosing(outputs):
        async for output in outputs:
            if isinstance(output, Piece):
                pieces[output.member].append(output)
                if clock() < said_at + SIGN_OF_LIFE_S:
                    continue
                said_at = clock()
                for member in tuple(pieces):
                    yield _joined(member, pieces.pop(member))
                continue
            if said := pieces.pop(output.member, None):
                yield _joined(output.member, said)
            yield output


def set_parameters(
    body: dict[str, Any],
    generation: Generation,
    *,
    names: Mapping[str, str],
    ours: Collection[str],
    counts: Collection[str] = ("n",),
) -> None:
    """Put the sampling parameters and `extra_body` into a request.

    `names` are the parameters that the engine calls otherwise, `ours` the fields that only the adapter sets,
    `counts` those that ask for several answers.

    Raises:
        RequestRejected: `extra_body` has what it must not.
    """
    for name, value in generation.params.items():
        body[names.get(name, name)] = value
    for name, value in generation.extra_body.items():
        if name in ours:
            raise RequestRejected(f"extra_body.{name}: is set from the request itself; leave it out")
        if name in counts and value != 1:
            raise RequestRejected(
                f"extra_body.{name}: a job has one answer; enqueue the prompt several times"
            )
        body[name] = value


def refuse_tools(generation: Generation) -> None:
    """Check that a plain completion has none.

    Raises:
        RequestRejected: it has.
    """
    if generation.tools or generation.tool_choice is not None:
        raise RequestRejected("tools: need a chat; give messages instead of prompt")


def refuse_chats_in_a_list(batch: Sequence[Generation]) -> None:
    """Check that only plain prompts share the call.

    Raises:
        ValueError: they do not, which is the caller's mistake.
    """
    if len(batch) > 1 and batch[0].messages is not None:
        raise ValueError("takes one chat in a call; lists are for plain prompts")


def _joined(member: int, pieces: Sequence[Piece]) -> Piece:
    return Piece(
        member,
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(call for piece in pieces for call in piece.tool_calls),
    )
