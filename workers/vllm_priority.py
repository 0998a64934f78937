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
from workers.http import EventStream, HttpEndpoint

TRIAL_TIMEOUT_S = 4.0
DEFEATS = 3

_SERVER_INFO = "/server_info?config_format=json"
_COMPLETION = "/v1/completions"
# vLLM runs the lowest first. These are the ends of what the scheduler itself sends.
_LEAST_URGENT, _MOST_URGENT = 5, -4
_CROWDS = (128, 1024, 8192)
_CROWD_TOKENS = 8
_WAVES = 8  # a crowd must be so many times what the server runs at once


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
                overtakes = await _overtakes(endpoint, model, size)
                if overtakes is not None:
                    return overtakes or await _wins_at_last(endpoint, model, size)
    return None


async def _wins_at_last(endpoint: HttpEndpoint, model: str, size: int) -> bool:
    """Whether the urgent win another time: the first crowd may have been through before they were there."""
    for _ in range(DEFEATS - 1):
        if await _overtakes(endpoint, model, size):
            return True
    return False


async def _overtakes(endpoint: HttpEndpoint, model: str, size: int) -> bool | None:
    """One trial; None where the crowd was too small to make anyone wait for long."""
    crowd = _answers(model, size, _CROWD_TOKENS, _LEAST_URGENT)
    started: set[int] = set()
    race: asyncio.Task[bool] | None = None
    try:
        async with endpoint.stream(_COMPLETION, crowd) as stream:  # leaving it sends the crowd away
            async for events in stream:
                speaking = [choice["index"] for event in events for choice in event["choices"]]
                first_wave_speaks_again = not started.isdisjoint(speaking)
                started.update(speaking)
                if race is None and first_wave_speaks_again:
                    if len(started) * _WAVES > size:
                        return None
                    race = asyncio.create_task(_urgent_wins(endpoint, model))
                if race is not None and race.done():
                    break
        return await race if race is not None else None
    finally:
        await _end(race)


async def _urgent_wins(endpoint: HttpEndpoint, model: str) -> bool:
    """Whether two urgent prompts are answered, one after the other, before one that is not but came first.

    In a first-come, first-served queue the patient one may be seen later than the first that is urgent, as
    both may start in the same step, but not later than the second.
    """
    patient = _answers(model, 1, 1, _LEAST_URGENT)
    async with endpoint.stream(_COMPLETION, patient) as stream:
        answered = asyncio.create_task(_read(stream))
        try:
            for _ in range(2):
                async with endpoint.stream(_COMPLETION, _answers(model, 1, 1, _MOST_URGENT)) as urgent:
                    await _read(urgent)
            if answered.done():
                answered.result()
                return False
            return True
        finally:
            await _end(answered)


async def _read(stream: EventStream) -> None:
    async for _ in stream:
        pass


async def _end(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
