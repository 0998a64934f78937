"""Finds out whether a vLLM server was started with `--scheduling-policy priority`.

Without it vLLM takes priorities with 200 and ignores them. Only in its development mode does it tell its
policy when asked. Otherwise it must be tried: an idle server is given more short answers to write than it
writes at once, none of them urgent, and then one that is. Where priorities count, that one does not have to
wait for all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from workers.base import Load
from workers.calls import MALFORMED
from workers.errors import WorkerError
from workers.http import HttpEndpoint

TRIAL_TIMEOUT_S = 4.0

_SERVER_INFO = "/server_info?config_format=json"
_COMPLETION = "/v1/completions"
# vLLM runs the lowest first. These are the ends of what the scheduler itself sends.
_LEAST_URGENT, _MOST_URGENT = 5, -4
_CROWDS = (128, 1024, 8192)
_WAVES = 8  # a crowd must be so many times what the server runs at once
_ANSWER_TOKENS = 8


async def says_priority(endpoint: HttpEndpoint) -> bool | None:
    """Whether the server says that urgent prompts go first; None where it says nothing."""
    with suppress(WorkerError, *MALFORMED):
        info = await endpoint.get(_SERVER_INFO)
        policy = info["vllm_config"]["scheduler_config"]["policy"]
        return policy == "priority" if isinstance(policy, str) else None
    return None


async def shows_priority(endpoint: HttpEndpoint, *, model: str, load: Load | None) -> bool | None:
    """Whether an urgent prompt overtakes others in a server that is idle; None where that cannot be told."""
    if load is None or load.running or load.waiting:
        return None
    with suppress(WorkerError, TimeoutError, *MALFORMED):
        async with asyncio.timeout(TRIAL_TIMEOUT_S):
            for size in _CROWDS:
                overtaken = await _overtakes(endpoint, model, size)
                if overtaken is not None:
                    return overtaken
    return None


async def _overtakes(endpoint: HttpEndpoint, model: str, size: int) -> bool | None:
    """One trial; None where the crowd was too small to make anyone wait."""
    started: set[int] = set()
    urgent: asyncio.Task[None] | None = None
    try:
        async with endpoint.stream(_COMPLETION, _crowd(model, size)) as crowd:
            async for events in crowd:
                crowd.output_began()
                speaking = [choice["index"] for event in events for choice in event["choices"]]
                first_wave_is_over = not started.isdisjoint(speaking)
                started.update(speaking)
                if urgent is None and first_wave_is_over:
                    if len(started) * _WAVES > size:
                        return None
                    urgent = asyncio.create_task(_ask_urgently(endpoint, model))
                if urgent is not None and urgent.done():
                    urgent.result()
                    return len(started) < size - size // _WAVES
    finally:
        if urgent is not None:
            urgent.cancel()
            await asyncio.wait([urgent])
    return None if urgent is None else False


async def _ask_urgently(endpoint: HttpEndpoint, model: str) -> None:
    async with endpoint.stream(_COMPLETION, _answers(model, 1, 1, _MOST_URGENT)) as stream:
        async for _ in stream:
            pass


def _crowd(model: str, size: int) -> Mapping[str, Any]:
    return _answers(model, size, _ANSWER_TOKENS, _LEAST_URGENT)


def _answers(model: str, count: int, tokens: int, priority: int) -> Mapping[str, Any]:
    return {
        "model": model,
        "prompt": "a",
        "n": count,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 1.0,  # of a greedy request vLLM takes one answer only
        "priority": priority,
        "stream": True,
    }
