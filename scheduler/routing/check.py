"""Checks a back end without using a user's prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from scheduler.batching import EmbeddingCaller, RerankCaller, Work
from scheduler.batching.bounded import within
from scheduler.batching.runner import close_outputs
from scheduler.routing.endpoint import Endpoint
from workers.base import Generation, Health, MemberFailed
from workers.errors import (
    ModelNotFound,
    RequestRejected,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
)

logger = logging.getLogger(__name__)

ASK_S = 30.0
"""How long an adapter's `health()` may take, in seconds; vLLM's may try prompts."""

ANSWER_S = 10.0
"""How long a healthy back end may take to begin the shortest answer, in seconds."""

MODELS_NAMED = 5

_SHORTEST = {"max_tokens": 1}
_URGENT = 9
_CHAT = Generation("", messages=({"role": "user", "content": "Hi"},), params=_SHORTEST, priority=_URGENT)
_PLAIN = Generation("", prompt="Hi", params=_SHORTEST, priority=_URGENT)


async def ask_health(endpoint: Endpoint) -> Health:
    """Ask the back end for its health. If the adapter raises or does not answer, it counts as not ready."""
    try:
        health = await within(ASK_S, endpoint.worker.health())
        return await look_for_model(endpoint, health)
    except TimeoutError:
        return Health(ready=False, detail="its model worker did not answer health() in time")
    except Exception as error:
        logger.debug("endpoint %s: health() failed", endpoint.name, exc_info=True)
        return Health(ready=False, detail=f"its model worker raised {type(error).__name__}")


async def look_for_model(endpoint: Endpoint, health: Health) -> Health:
    """Its health, including whether the back end serves the model that the settings name.

    It does not where its list of models leaves no doubt, or where a prompt shows it: many servers take more
    names than they list, aliases or any name at all.
    """
    if not health.ready or not _is_missing(endpoint.settings.model, health):
        return health
    if health.exclusive or isinstance(await try_prompt(endpoint), ModelNotFound):
        return replace(health, ready=False, detail=missing_model(endpoint.model, health.models))
    return health


def _is_missing(model: str | None, health: Health) -> bool:
    return model is not None and bool(health.models) and model not in health.models


def missing_model(model: str, models: Sequence[str]) -> str:
    """The message for a back end that does not serve a model, with the models it serves."""
    named = ", ".join(models[:MODELS_NAMED])
    more = f" and {len(models) - MODELS_NAMED} more" if len(models) > MODELS_NAMED else ""
    return f"it does not serve the model {model}, but {named}{more}; give one of these as model"


async def try_prompt(endpoint: Endpoint) -> WorkerError | None:
    """Ask the back end for one token, vector or score. Returns the error, or None if it is healthy.

    A back end that refuses the prompt or is overloaded does answer, so it is healthy. Not every server has
    both chat and plain completions: one of them is enough.
    """
    if isinstance(endpoint.worker, EmbeddingCaller | RerankCaller):
        return await _try(endpoint, endpoint.worker.probe)
    if not endpoint.worker.capabilities.chat:
        return await _try(endpoint, _PLAIN)
    error = await _try(endpoint, _CHAT)
    if isinstance(error, ModelNotFound | WorkerFailed | WorkerProtocolError):
        return await _try(endpoint, _PLAIN)
    return error


async def _try(endpoint: Endpoint, prompt: Work) -> WorkerError | None:
    limit_s = min(ANSWER_S, endpoint.settings.first_token_timeout_s)
    try:
        await within(limit_s, _first_output(endpoint, replace(prompt, model=endpoint.model)))
    except (RequestRejected, WorkerOverloaded):
        return None
    except WorkerError as error:
        return error
    except TimeoutError:
        return WorkerTimeout(f"it did not answer the shortest of prompts within {limit_s:g} s")
    except Exception as error:
        logger.debug("endpoint %s: generate() failed", endpoint.name, exc_info=True)
        return WorkerError(f"its model worker raised {type(error).__name__}")
    return None


async def _first_output(endpoint: Endpoint, prompt: Work) -> None:
    outputs = endpoint.worker.generate([prompt])
    try:
        async for output in outputs:
            if isinstance(output, MemberFailed):
                raise output.error
            return
    finally:
        await close_outputs(outputs)
    raise WorkerProtocolError("it ended its answer to the shortest of prompts before it began")
