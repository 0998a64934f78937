"""Bounded waits for code that is not ours: it may never finish, and may ignore cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(limit_s: float, call: Coroutine[Any, Any, T]) -> T:
    """Await a call for at most `limit_s`, even if it ignores its cancellation, unlike `asyncio.timeout`.

    Raises:
        TimeoutError: the call has not finished in time. It is cancelled and no longer awaited.
    """
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait([task], timeout=limit_s)
    except BaseException:
        let_go(task)
        raise
    if not done:
        let_go(task)
        raise TimeoutError
    return task.result()


def let_go(task: asyncio.Future[Any]) -> None:
    """Cancel a task that nobody waits for, and ignore how it ends."""
    _left.add(task)
    task.add_done_callback(_forget)
    task.cancel()


_left: set[asyncio.Future[Any]] = set()  # the event loop itself holds tasks weakly


def _forget(task: asyncio.Future[Any]) -> None:
    _left.discard(task)
    if not task.cancelled():
        task.exception()
