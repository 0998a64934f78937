"""What model workers over HTTP have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from workers.base import Generation, Health, Load, Output
from workers.calls import (
    MALFORMED,
    AnswerReader,
    ReportedError,
    is_short,
    refuse_chats_in_a_list,
    whole,
)
from workers.errors import RequestRejected, WorkerError
from workers.http import HttpEndpoint
from workers.optional_fields import NO_OPTIONAL_FIELDS, Attempts, OptionalFields
from workers.prometheus import load_of
from workers.refusals import refusal_of
from workers.surrogates import SurrogateJoiner

_MAX_ID_CHARS = 512


class HttpWorker:
    """The base of an adapter to a server over HTTP: health by the list of models, calls, and closing.

    `model` is the endpoint's own name for the model, `optional` the fields that requests can do without.
    """

    models_path: ClassVar[str] = "/v1/models"
    """Where the server lists its models."""

    request_id_header: ClassVar[str | None] = None
    """The header that carries the id of a request; None if the server takes none."""

    def __init__(
        self,
        endpoint: HttpEndpoint,
        *,
        model: str | None = None,
        optional: OptionalFields = NO_OPTIONAL_FIELDS,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.optional = optional

    async def health(self) -> Health:
        """Ready when the server accepts the key. A server without a list of models counts as ready."""
        try:
            models = await self.models()
        except RequestRejected:
            models = ()
        except WorkerError as error:
            return Health(ready=False, detail=str(error))
        return Health(ready=True, models=models, warnings=self.optional.warnings)

    async def capacity(self) -> int | None:
        """None: the server does not say."""
        return None

    async def load(self) -> Load | None:
        """None: the server does not say."""
        return None

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        await self.endpoint.aclose()

    async def models(self) -> tuple[str, ...]:
        """The names of the models that the server lists; empty if its list has another form.

        Raises:
            WorkerError: the server gave no list.
        """
        answer = await self.endpoint.get(self.models_path)
        try:
            return tuple(str(model["id"]) for model in answer["data"])
        except MALFORMED:
            return ()

    async def answers(
        self,
        path: str,
        body: Mapping[str, Any],
        reader: AnswerReader,
        generation: Generation,
    ) -> AsyncGenerator[Output, None]:
        """Make one call and yield the outputs that `reader` makes of its events.

        If the server refuses one of the `optional` fields, the call is repeated without it. A failure after
        all prompts have ended is ignored.

        Raises:
            WorkerError: the call failed, was cut off, or its answer is malformed.
        """
        attempts = Attempts(body, self.optional)
        headers = self.request_headers(generation.request_id)
        joiner = SurrogateJoiner()
        again = True
        said_done = False
        while again:
            again = began = False
            try:
                async with self.endpoint.stream(path, attempts.body, headers=headers) as stream:
                    attempts.accepted()
                    reader.head = stream.head
                    async for events in stream:
                        for event in events:
                            outputs = _read(self.endpoint, reader, event)
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
            raise self.endpoint.cut_off(reader.missing, reader.total)

    async def answers_at_once(
        self,
        path: str,
        body: Mapping[str, Any],
        reader: AnswerReader,
        events: Callable[[Any], Iterable[Mapping[str, Any]]],
        generation: Generation,
    ) -> AsyncGenerator[Output, None]:
        """The same without a stream: `events` turns the whole answer into the events that `reader` reads.

        Raises:
            WorkerError: the call failed, or its answer is malformed.
        """
        answer = await post_body(
            self.endpoint, path, Attempts(body, self.optional), self.request_headers(generation.request_id)
        )
        try:
            parts = tuple(events(answer))
        except MALFORMED:
            raise self.endpoint.malformed() from None
        outputs = [output for event in parts for output in _read(self.endpoint, reader, event)]
        for output in SurrogateJoiner().mend((*outputs, *reader.finish())):
            yield output
        if reader.missing:
            raise self.endpoint.cut_off(reader.missing, reader.total)

    def request_headers(self, value: str) -> dict[str, str]:
        """The header with the id of a request; none if the id cannot stand in a header."""
        name = self.request_id_header
        if not name or not value or len(value) > _MAX_ID_CHARS:
            return {}
        return {name: value} if value.isascii() and value.isprintable() else {}


class EngineWorker(HttpWorker):
    """The base of an adapter to an engine of your own, which takes lists of plain prompts and has metrics.

    Answers are streamed on the wire even if the request wants them whole, so that a cancelled call stops and
    the time limits between tokens hold. Short plain completions wanted whole are the exception
    (`SHORT_TOKENS`): for them a stream costs the server more than the answer.
    """

    running_metric: ClassVar[str]
    """The gauge of prompts that the engine is running."""

    waiting_metric: ClassVar[str]
    """The gauge of prompts that wait inside the engine."""

    def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Run a batch; see `GenerationWorker.generate`. Any error fails the batch as a whole."""
        refuse_chats_in_a_list(batch)
        first = batch[0]
        if first.messages is None and not first.stream and is_short(first):
            return self._complete_at_once(batch)
        outputs = self._complete(batch) if first.messages is None else self._chat(first)
        return outputs if first.stream else whole(outputs)

    async def load(self) -> Load | None:
        """What the engine's metrics say; None if it has none."""
        return await load_of(
            self.endpoint, "/metrics", running=self.running_metric, waiting=self.waiting_metric
        )

    def _complete(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Plain prompts, streamed."""
        raise NotImplementedError

    def _complete_at_once(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Short plain prompts, not streamed."""
        raise NotImplementedError

    def _chat(self, generation: Generation) -> AsyncGenerator[Output, None]:
        """One chat, streamed."""
        raise NotImplementedError


def _read(endpoint: HttpEndpoint, reader: AnswerReader, event: Mapping[str, Any]) -> Sequence[Output]:
    try:
        return reader.read(event)
    except ReportedError as reported:
        raise endpoint.error(refusal_of(reported.answer)) from None
    except MALFORMED:
        raise endpoint.malformed() from None


async def post_body(
    endpoint: HttpEndpoint, path: str, attempts: Attempts, headers: Mapping[str, str] | None
) -> Any:
    """POST a body, and again without the field that the server refuses, if it can do without.

    Raises:
        WorkerError: the call failed.
    """
    while True:
        try:
            answer = await endpoint.post(path, attempts.body, headers=headers)
        except WorkerError as error:
            if not attempts.give_way(error):
                raise
        else:
            attempts.accepted()
            return answer
