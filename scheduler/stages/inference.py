"""The inference stage: sends the prompt to an engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from scheduler.routing import Endpoint, choose_endpoint
from scheduler.stages.base import PromptContext
from scheduler.stages.completion import believed
from scheduler.stages.messages import text_of
from scheduler.stages.tokens import estimate_tokens
from workers.base import Completed, Generation, Piece
from workers.errors import (
    AnswerTooLong,
    ModelNotFound,
    UnsupportedParameter,
    WorkerAuthError,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerUnavailable,
)
from workers.extra_fields import size_of

STOPPED_S = 2.0
"""How long an engine that ignored a stop string may take to end by itself, in seconds."""


class InferenceStage:
    """Runs the prompt on one of the route's endpoints and delivers the answer, piece by piece.

    If an endpoint fails before anything arrives from it, the next is tried within the same attempt.
    `fallbacks` are the endpoints of other routes, used while none of the route's own admits a prompt.

    Sets `context.endpoint`, `context.first_token_at` and `context.completed`. When a filter sets
    `context.stopped`, the answer ends there with finish_reason "stop". The engine then has `stopped_s` to end
    by itself and report its token counts; after that the prompt is given up.
    """

    name = "inference"

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        clock: Callable[[], float] = time.monotonic,
        stopped_s: float = STOPPED_S,
    ) -> None:
        if not endpoints:
            raise ValueError("endpoints: a route needs at least one")
        self.endpoints = tuple(endpoints)
        self.fallbacks: tuple[tuple[Endpoint, ...], ...] = ()
        self._clock = clock
        self._stopped_s = stopped_s

    async def run(self, context: PromptContext) -> None:
        """Run the prompt on an engine.

        Raises:
            workers.errors.WorkerError: the attempt failed; `retryable` decides what happens next.
        """
        failed: dict[Endpoint, WorkerError] = {}
        while True:
            endpoint = self._choose(context, failed)
            if endpoint is None:
                raise self._none_left(context, failed)
            try:
                await _pass_rate_limit(context, endpoint)
                if not endpoint.admits:  # the breaker opened while the permit was requested
                    continue
                await self._ask(context, endpoint)
            except WorkerError as error:
                if not _another_may_do_better(context, error, failed.values()):
                    raise
                failed[endpoint] = error
            else:
                return

    def _choose(self, context: PromptContext, failed: Collection[Endpoint]) -> Endpoint | None:
        session = context.request.get("session")
        for group in (self.endpoints, *self.fallbacks):
            untried = [endpoint for endpoint in group if endpoint not in failed] if failed else group
            if context.permit and (own := _named(context.permit, untried)):
                return own
            if endpoint := choose_endpoint(untried, priority=context.priority, session=session):
                return endpoint
        return None

    async def _ask(self, context: PromptContext, endpoint: Endpoint) -> None:
        context.endpoint, context.model = endpoint.name, endpoint.model
        epoch = endpoint.breaker.begin()
        try:
            async with asyncio.timeout(None) as limit:
                completed = await endpoint.batcher.run(
                    generation_of(context, endpoint),
                    self._deliverer(context, endpoint, limit),
                    tokens=prompt_tokens(context),
                    expires_at=context.expires_at,
                )
            context.completed = believed(completed)
        except (TimeoutError, WorkerError):
            if not context.all_stopped:
                raise
            endpoint.breaker.record(epoch, ok=True)  # the engine did its part
            context.completed = Completed(member=0, finish_reason="stop")
        if context.stopped:
            context.completed = context.completed._replace(finish_reason="stop")

    def _deliverer(
        self, context: PromptContext, endpoint: Endpoint, limit: asyncio.Timeout
    ) -> Callable[[Piece], None]:
        left = most = endpoint.settings.max_output_bytes

        def deliver(piece: Piece) -> None:
            nonlocal left
            if context.stopped and (not piece.choice or context.all_stopped):
                return
            left -= _bytes_of(piece)
            if left < 0:
                raise AnswerTooLong(
                    f"endpoint {endpoint.name} answers with more than {most:,} bytes: raise its "
                    "max_output_bytes, or ask for less with max_tokens"
                )
            if context.first_token_at is None:
                context.first_token_at = self._clock()
            context.deliver(piece)
            if context.stopped and context.all_stopped:
                limit.reschedule(asyncio.get_running_loop().time() + self._stopped_s)

        return deliver

    def _none_left(self, context: PromptContext, failed: Mapping[Endpoint, WorkerError]) -> WorkerError:
        """The failure that can be retried soonest; or a wait for endpoints that were not asked."""
        groups = (self.endpoints, *self.fallbacks)
        unasked = [endpoint for group in groups for endpoint in group if endpoint not in failed]
        # A missing model or a wrong key depends neither on the job nor on time.
        retryable = [
            error for error in failed.values() if error.retryable and not isinstance(error, ModelNotFound)
        ]
        soonest = min(reversed(retryable), key=_wait_s, default=None)
        if unasked:
            wait_s = min(endpoint.usable_in_s for endpoint in unasked)
            if soonest is None or wait_s < _wait_s(soonest):
                return WorkerUnavailable(
                    f"no endpoint of route {context.route} can be used now", retry_after_s=wait_s
                )
        return soonest or list(failed.values())[-1]


def _bytes_of(piece: Piece) -> int:
    size = _utf8_bytes(piece.text) + _utf8_bytes(piece.reasoning)
    for fragment in piece.tool_calls:
        parts = (fragment.get("function") or {}).values()
        size += sum(_utf8_bytes(part) for part in parts if isinstance(part, str))
    return size + size_of(piece.extra) if piece.extra else size


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _wait_s(error: WorkerError) -> float:
    return error.retry_after_s or 0.0


def _named(name: str, endpoints: Iterable[Endpoint]) -> Endpoint | None:
    return next((endpoint for endpoint in endpoints if endpoint.name == name and endpoint.admits), None)


async def _pass_rate_limit(context: PromptContext, endpoint: Endpoint) -> None:
    """Get a permit if the endpoint needs one and the claim did not include it.

    Raises:
        WorkerOverloaded: no permit is free; `retry_after_s` says when one will be.
    """
    if not endpoint.rate_limited or endpoint.name == context.permit or context.take_permit is None:
        return
    if wait_ms := await context.take_permit(endpoint.name):
        raise WorkerOverloaded(
            f"endpoint {endpoint.name} has used up its rate limit", retry_after_s=wait_ms / 1000
        )
    context.permit = endpoint.name


def _another_may_do_better(context: PromptContext, error: WorkerError, before: Iterable[WorkerError]) -> bool:
    """Whether to try another endpoint: nothing has arrived, and the prompt is not at fault itself.

    If two engines have failed on it, it most likely is.
    """
    if isinstance(error, WorkerFailed) and any(isinstance(other, WorkerFailed) for other in before):
        return False
    return context.first_token_at is None and (
        error.retryable or isinstance(error, (WorkerAuthError, UnsupportedParameter))
    )


def generation_of(context: PromptContext, endpoint: Endpoint) -> Generation:
    """Build the model worker's input."""
    request = context.request
    return Generation(
        model=endpoint.model,
        prompt=context.prompt,
        token_ids=context.token_ids,
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
    """Estimate the prompt tokens that the engine has to read."""
    if context.prompt is not None:
        return estimate_tokens(context.prompt)
    if context.token_ids is not None:
        return len(context.token_ids)
    return sum(estimate_tokens(text_of(message.get("content"))) for message in context.messages or ())
