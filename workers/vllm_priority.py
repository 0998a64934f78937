"""Finds out whether a vLLM server was started with `--scheduling-policy priority`.

Without it vLLM takes priorities with 200 and ignores them. Only in its development mode does it tell its
policy when asked. Otherwise it must be tried: an idle server is given more short answers to write than it
writes at once, none of them urgent, and then one that is. Where priorities count, that one does not have to
wait for all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from workers.base import Load
from workers.calls import MALFORMED
from workers.errors import WorkerError
from workers.event_stream import EventStream
from workers.http import HttpEndpoint

TRIAL_TIMEOUT_S = 4.0
DEFEATS = 2

AskLoad: TypeAlias = Callable[[], Awaitable[Load | None]]

_SERVER_INFO = "/server_info?config_format=json"
_COMPLETION = "/v1/completions"
# vLLM runs the lowest first. These are the ends of what the scheduler itself sends.
_LEAST_URGENT, _MOST_URGENT = 5, -4
_CROWDS = (128, 1024, 8192)
_CROWD_TOKENS = 8
_WAVES = 8  # a crowd must be so many times what the server runs at once, and half of it wait


async def says_priority(endpoint: HttpEndpoint) -> bool | None:
    """Whether the server says that urgent prompts go first; None where it says nothing."""
    with suppress(WorkerError, *MALFORMED):
        info = await endpoint.get(_SERVER_INFO)
        policy = info["vllm_config"]["scheduler_config"]["policy"]
        return policy == "priority" if isinstance(policy, str) else None
    return None


async def shows_priority(endpoint: HttpEndpoint, *, model: str, load: AskLoad) -> bool | None:
    """Whether an urgent prompt overtakes others in a server that is idle; None where that cannot be told.

    `load` asks the server what it has to do.
    """
    with suppress(WorkerError, TimeoutError, *MALFORMED):
        async with asyncio.timeout(TRIAL_TIMEOUT_S):
            now = await load()
            if now is None or now.running or now.waiting:
                return None
            for size in _CROWDS:
                with suppress(_CrowdTooSmall):
                    return await _overtakes_once(endpoint, model, size, load)
    return None


async def _overtakes_once(endpoint: HttpEndpoint, model: str, size: int, load: AskLoad) -> bool | None:
    """Whether the urgent one wins in any of some trials; None once a trial tells nothing."""
    for _ in range(DEFEATS):
        if (overtakes := await _overtakes(endpoint, model, size, load)) is not False:
            return overtakes
    return False


class _CrowdTooSmall(Exception):
    """The server runs so many answers at once that hardly any has to wait."""


async def _overtakes(endpoint: HttpEndpoint, model: str, size: int, load: AskLoad) -> bool | None:
    """One trial: an urgent prompt is sent while a crowd waits.

    How many of the crowd begin between the moment in which the server has taken the urgent prompt and its
    answer tells who goes first; how long that takes does not, as the server may be slow in taking it.
    """
    crowd = _answers(model, size, _CROWD_TOKENS, _LEAST_URGENT)
    begun: set[int] = set()
    urgent: asyncio.Task[bool | None] | None = None
    try:
        async with endpoint.stream(_COMPLETION, crowd) as stream:  # leaving it sends the crowd away
            async for events in stream:
                speaking = [choice["index"] for event in events for choice in event["choices"]]
                first_wave_speaks_again = not begun.isdisjoint(speaking)
                begun.update(speaking)
                if urgent is None and first_wave_speaks_again:
                    if len(begun) * _WAVES > size:
                        raise _CrowdTooSmall
                    urgent = asyncio.create_task(_goes_first(endpoint, model, size, begun, load))
                if urgent is not None and urgent.done():
                    break
        return await urgent if urgent is not None else None
    finally:
        await _end(urgent)


async def _goes_first(
    endpoint: HttpEndpoint, model: str, size: int, begun: Collection[int], load: AskLoad
) -> bool | None:
    """Whether an urgent prompt is answered before most of those that wait; None where too few do."""
    wave, ahead = len(begun), 0
    while ahead < size and len(begun) <= 2 * wave:  # vLLM takes a crowd in one by one
        now = await load()
        ahead = (now.waiting if now else 0) + len(begun)
    async with endpoint.stream(_COMPLETION, _answers(model, 1, 1, _MOST_URGENT)) as stream:
        begun_before = len(begun)
        if ahead - begun_before < wave * _WAVES // 2:
            return None
        await _read(stream)
    begun_meanwhile, waited = len(begun) - begun_before, ahead - begun_before
    if begun_meanwhile <= 2 * wave:
        return True
    return False if begun_meanwhile > waited / 2 else None


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
