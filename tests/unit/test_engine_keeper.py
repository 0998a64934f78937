"""Leases while the event loop is blocked."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from scheduler.engine.keeper import LeaseKeeper
from scheduler.errors import RedisUnavailable
from scheduler.stages.base import PromptContext
from scheduler.stages.pipeline import Pipeline, StageGate
from tests.patience import SOON_S

CONTEXT: dict[str, Any] = {
    "job_id": "j1",
    "attempt": 1,
    "route": "chat",
    "tenant": "default",
    "priority": 5,
    "prompt": "Hi",
    "messages": None,
    "params": {},
    "request": {},
}


class Renewing:
    """Renews nothing, and lets a thread wait for it. Fails the first `failures` times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.happened = threading.Semaphore(0)

    async def __call__(self) -> None:
        self.happened.release()
        if self.failures:
            self.failures -= 1
            raise RedisUnavailable("away")

    def block_until(self, times: int) -> None:
        """Block the event loop that calls this until there have been so many renewals."""
        for _ in range(times):
            assert self.happened.acquire(timeout=SOON_S)


class Heard(logging.Handler):
    """Lets a thread wait for a line of the log."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words
        self.line = ""
        self.happened = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.line = record.getMessage()
            self.happened.set()


def heard(words: str, monkeypatch: pytest.MonkeyPatch) -> Heard:
    handler = Heard(words)
    monkeypatch.setattr(logging.getLogger("scheduler.engine.keeper"), "handlers", [handler])
    return handler


async def test_leases_are_renewed_while_the_loop_is_blocked_and_the_log_says_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line, renewing = heard("is blocked", monkeypatch), Renewing()
    keeper = LeaseKeeper(renewing, lease_s=0.05)
    keeper.start()
    keeper.start()
    renewing.block_until(times=10)
    await keeper.stop()
    await keeper.stop()
    assert threading.__file__ in line.line, "where it waited"
    assert not any(thread.name == "leases" for thread in threading.enumerate())


async def test_of_a_stage_that_blocks_its_own_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    line, renewing = heard("is blocked", monkeypatch), Renewing()

    class Blocking:
        name = "blocking"

        async def run(self, context: PromptContext) -> None:
            renewing.block_until(times=10)

    keeper = LeaseKeeper(renewing, lease_s=0.05)
    keeper.start()
    await Pipeline([(Blocking(), StageGate(1))]).run(PromptContext(**CONTEXT))
    await keeper.stop()
    first = Blocking.run.__code__.co_firstlineno
    assert f"at {__file__}:{first + 1}: " in line.line


async def test_a_renewal_that_fails_is_tried_again() -> None:
    renewing = Renewing(failures=2)
    keeper = LeaseKeeper(renewing, lease_s=0.05)
    keeper.start()
    renewing.block_until(times=3)
    await keeper.stop()


async def test_each_time_that_the_loop_is_blocked_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    line, renewing = heard("is blocked", monkeypatch), Renewing()
    keeper = LeaseKeeper(renewing, lease_s=0.05)
    keeper.start()
    for _ in range(2):
        renewing.block_until(times=10)
        assert line.happened.is_set()
        while keeper.blocked:
            await asyncio.sleep(0.001)
        line.happened.clear()
    await keeper.stop()


async def test_a_loop_that_never_turns_again_loses_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    line, renewing = heard("go to others", monkeypatch), Renewing()
    keeper = LeaseKeeper(renewing, lease_s=0.05, blocked_leases=0.5)
    keeper.start()
    assert line.happened.wait(SOON_S)
    while renewing.happened.acquire(blocking=False):
        pass
    assert not renewing.happened.acquire(timeout=0.2), "they are renewed no more"
    await keeper.stop()
