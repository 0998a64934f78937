"""A pytest plugin: runs the tests once as they are, then in a process a mutant until one fails."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto

import pytest
from _pytest.runner import runtestprotocol

from scheduler.queue import scripts
from tests.mutation.lines import Lines, changed_lines, seen_lines
from tests.mutation.lua import Mutant

LEAST_TIME_S = 20.0
SLOWER = 3  # a mutant may take as many times what all tests take
MOST_CODES = 250  # exit codes that can name a test


class Outcome(Enum):
    KILLED = auto()
    SURVIVED = auto()


class Trial:
    """Tries mutants, `jobs` at a time. What came of each is in `outcomes`."""

    def __init__(self, mutants: Sequence[Mutant], jobs: int) -> None:
        self.outcomes: dict[Mutant, Outcome] = {}
        self._mutants = mutants
        self._jobs = jobs
        self._lines: dict[pytest.Item, Lines] = {}
        self._took_s: dict[pytest.Item, float] = {}
        self._killers: dict[str, Counter[pytest.Item]] = defaultdict(Counter)  # by file

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            self._run_whole(item)
        self._limit_s = max(LEAST_TIME_S, SLOWER * sum(self._took_s.values()))
        waiting = list(reversed(self._mutants))
        running: dict[int, tuple[Mutant, list[pytest.Item], float]] = {}
        while waiting or running:
            while waiting and len(running) < self._jobs:
                mutant = waiting.pop()
                items = self._items(mutant)
                running[self._fork(mutant, items)] = mutant, items, time.monotonic()
            self._collect(running)
        return True

    def _run_whole(self, item: pytest.Item) -> None:
        """Run a test on the scripts as they are, and note which lines of them it runs."""
        began = time.monotonic()
        with seen_lines() as lines:
            reports = runtestprotocol(item, nextitem=None, log=False)
        for report in reports:
            if report.failed:
                pytest.exit(f"{item.nodeid} fails without a mutant:\n{report.longreprtext}", returncode=2)
        self._took_s[item] = time.monotonic() - began
        self._lines[item] = lines

    def _items(self, mutant: Mutant) -> list[pytest.Item]:
        """The tests that run a line the mutant changes; first those that have killed others of its file."""
        before = [scripts.source(name, flags=False) for name in scripts.NAMES]
        with _applied(mutant):
            after = [scripts.source(name, flags=False) for name in scripts.NAMES]
        changed = {old: changed_lines(old, new) for old, new in zip(before, after, strict=True) if old != new}
        users = [
            item
            for item, lines in self._lines.items()
            if any(lines.get(script, set()) & numbers for script, numbers in changed.items())
        ]
        killed = self._killers[mutant.file]
        return sorted(users, key=lambda item: (-killed[item], self._took_s[item]))

    def _fork(self, mutant: Mutant, items: list[pytest.Item]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 255
        try:
            os.setpgid(0, 0)
            code = _first_failing(mutant, items)
        finally:
            os._exit(code)

    def _collect(self, running: dict[int, tuple[Mutant, list[pytest.Item], float]]) -> None:
        """Take what has ended, and end what has run for too long: a mutant may loop for ever."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            self._ended(*running.pop(pid)[:2], os.waitstatus_to_exitcode(status))
            return
        for late in [pid for pid, (*_, began) in running.items() if time.monotonic() - began > self._limit_s]:
            os.kill(late, signal.SIGKILL)
        time.sleep(0.01)

    def _ended(self, mutant: Mutant, items: list[pytest.Item], code: int) -> None:
        self.outcomes[mutant] = Outcome.KILLED if code else Outcome.SURVIVED
        if 0 < code <= min(MOST_CODES, len(items)):
            self._killers[mutant.file][items[code - 1]] += 1
        if not code:
            print(f"\r{mutant}", flush=True)
        said = f"{len(self.outcomes)} of {len(self._mutants)}, {self.survived} survived"
        print(f"\r{said}", end="", file=sys.stderr, flush=True)

    @property
    def survived(self) -> int:
        return sum(outcome is Outcome.SURVIVED for outcome in self.outcomes.values())


def _first_failing(mutant: Mutant, items: list[pytest.Item]) -> int:
    """Run the tests until one fails: its number, from 1 on; 0 if none does."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    with _applied(mutant):
        for number, item in enumerate(items, 1):
            if any(report.failed for report in runtestprotocol(item, nextitem=None, log=False)):
                return min(number, MOST_CODES + 1)
    return 0


@contextmanager
def _applied(mutant: Mutant) -> Iterator[None]:
    """The mutant stands in the place of its file."""
    read = scripts._read

    def reading(name: str) -> str:
        return mutant.applied(read(name)) if name == mutant.file else read(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "_read", reading)
        scripts.source.cache_clear()
        yield
    scripts.source.cache_clear()
