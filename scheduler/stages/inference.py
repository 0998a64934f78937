"""The stage that asks the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scheduler.batching.endpoint import Endpoint
from scheduler.stages.base import PromptContext
from scheduler.stages.messages import text_of
from scheduler.stages.tokens import estimate_tokens
from workers.base import Completed, Generation, Piece


class InferenceStage:
    """Runs the prompt on one of the route's endpoints and delivers the answer, piece by piece.

    Sets `context.endpoint`, `context.first_token_at` and `context.completed`. When a filter sets
    `context.stopped`, the answer ends there with finish_reason "stop" and the prompt's share of the call is
    given up.
    """

    name = "inference"

    def __init__(self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float] = time.monotonic) -> None:
        if not endpoints:
            raise ValueError("endpoints: a route needs at least one")
        self.endpoints = tuple(endpoints)
        self._clock = clock

    async def run(self, context: PromptContext) -> None:
        """Ask the engine.

        Raises:
            workers.errors.WorkerError: the attempt failed; `retryable` decides what happens next.
        """
        endpoint = choose_endpoint(self.endpoints)
        context.endpoint = endpoint.name
        try:
            context.completed = await endpoint.batcher.run(
                generation_of(context, endpoint),
                _deliverer(context, self._clock),
                tokens=prompt_tokens(context),
                expires_at=context.expires_at,
            )
        except _AnswerStopped:
            context.completed = Completed(member=0, finish_reason="stop")


def choose_endpoint(endpoints: Sequence[Endpoint]) -> Endpoint:
    """Take the endpoint with the least outstanding work by weight, and one with room before one without.

    Of equals the first: a quiet route then stays with one endpoint, whose prefix cache is warm.
    """
    return min(endpoints, key=_load)


def _load(endpoint: Endpoint) -> tuple[bool, float]:
    return endpoint.room == 0, (endpoint.outstanding + 1) / endpoint.weight


def generation_of(context: PromptContext, endpoint: Endpoint) -> Generation:
    """Put together what the model worker gets; `model` is the endpoint's own name for it, or the route's."""
    request = context.request
    return Generation(
        model=endpoint.settings.model or context.route,
        prompt=context.prompt,
        messages=None if context.messages is None else tuple(context.messages),
        params=context.params,
        tools=tuple(request.get("tools") or ()),
        tool_choice=request.get("tool_choice"),
        response_format=request.get("response_format"),
        extra_body=request.get("extra_body") or {},
        priority=context.priority,
        stream=request.get("stream", True),
        request_id=context.job_id,
    )


def prompt_tokens(context: PromptContext) -> int:
    """Guess the tokens that the engine has to read."""
    if context.prompt is not None:
        return estimate_tokens(context.prompt)
    return sum(estimate_tokens(text_of(message.get("content"))) for message in context.messages or ())


class _AnswerStopped(Exception):
    """A filter has seen enough of the answer."""


def _deliverer(context: PromptContext, clock: Callable[[], float]) -> Callable[[Piece], None]:
    def deliver(piece: Piece) -> None:
        if context.first_token_at is None:
            context.first_token_at = clock()
        context.deliver(piece)
        if context.stopped:
            raise _AnswerStopped

    return deliver
