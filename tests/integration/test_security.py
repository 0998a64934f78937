"""TLS that is verified, and users with no more rights than docs/security.md gives them: on real servers."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import trustme
from arq.connections import ArqRedis
from typer.testing import CliRunner

from scheduler import (
    AsyncClient,
    DedupMode,
    JobCancelled,
    JobFailed,
    JobState,
    PromptRequest,
    QueueFull,
    RedisUnavailable,
    admin,
    arq_jobs,
)
from scheduler.cli.app import app
from scheduler.redis_server import pool as redis_pool
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.sentinel import SentinelUrl
from tests.acceptance.conftest import StartWorker
from tests.acceptance.conftest import start_worker as start_worker  # noqa: PLC0414  a fixture
from tests.chaos.proxy import ChaosProxy
from tests.patience import SOON_S

ROOT = Path(__file__).parents[2]


# TLS


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
async def tls_port(valkey_url: str, ca: trustme.CA) -> AsyncIterator[int]:
    """A Valkey behind TLS, whose certificate is for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    at = urlsplit(valkey_url)
    async with ChaosProxy(str(at.hostname), at.port or 0, tls=context) as front:
        yield front.port


async def test_jobs_run_over_tls(tls_port: int, ca_file: Path, start_worker: StartWorker) -> None:
    url = f"rediss://localhost:{tls_port}?ssl_ca_certs={ca_file}"
    await asyncio.to_thread(start_worker, url)
    async with AsyncClient(url) as client:
        assert (await client.run("over TLS", timeout_s=SOON_S)).text == "over TLS"
    check = [sys.executable, "-m", "arq", "--check", "scheduler.WorkerSettings"]
    environ = {"PATH": "/usr/bin:/bin", "SCHEDULER_REDIS_URL": url}
    done = await asyncio.to_thread(subprocess.run, check, env=environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_the_standard_variable_names_the_ca(
    tls_port: int, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    async with AsyncClient(f"rediss://localhost:{tls_port}") as client:
        assert (await (await client.enqueue("x")).info()).state is JobState.WAITING


@pytest.mark.parametrize("mistake", ["another CA", "another host"])
async def test_a_certificate_that_is_not_the_servers_is_refused(
    tls_port: int, ca_file: Path, mistake: str
) -> None:
    host, query = "localhost", ""
    if mistake == "another host":
        host, query = "127.0.0.1", f"?ssl_ca_certs={ca_file}"
    with pytest.raises(RedisUnavailable, match=r"certificate that is not accepted.*ssl_ca_certs"):
        async with AsyncClient(f"rediss://{host}:{tls_port}{query}"):
            pass


async def test_tls_on_one_side_alone_is_explained(
    tls_port: int, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Redis without TLS waits for the rest of what it takes for a command.
    monkeypatch.setattr(redis_pool, "socket_options", lambda _: {"socket_connect_timeout": 0.5})
    with pytest.raises(RedisUnavailable, match="If it speaks TLS, give rediss://"):
        async with AsyncClient(f"redis://localhost:{tls_port}"):
            pass
    with pytest.raises(RedisUnavailable, match="does it speak TLS\\? If it does not, give redis://"):
        async with AsyncClient(valkey_url.replace("redis://", "rediss://")):
            pass


async def test_what_is_no_redis_is_told_as_such() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(b"<html>\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RedisUnavailable, match=r"what answers at .* is no Redis"):
            async with AsyncClient(f"redis://127.0.0.1:{port}"):
                pass


def test_sentinels_are_asked_over_the_same_tls() -> None:
    pool = SentinelUrl.parse("rediss+sentinel://a,b/primary?ssl_ca_certs=/ca.pem").pool(
        ssl_check_hostname=True, socket_timeout=3
    )
    own = pool.sentinel_manager.sentinel_kwargs  # type: ignore[attr-defined]  # redis-py types the pool as any pool
    wanted = {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": True, "socket_timeout": 3}
    assert {**own, **wanted, "ssl": True} == own
    assert wanted.items() <= pool.connection_kwargs.items()


# Users


def documented(name: str) -> list[str]:
    """A user as docs/security.md writes it: the command, word by word."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (command,) = re.findall(rf"^ACL SETUSER {name} .*$", text, re.MULTILINE)
    return str(command).split()


@pytest.fixture
def users(server_url: str) -> Iterator[dict[str, str]]:
    """The URLs of the documented users, and of one who may do all."""
    names = ("worker", "client")
    with closing(redis.Redis.from_url(server_url)) as root:
        knows_setinfo = "setinfo" in str(root.execute_command("CLIENT", "HELP")).lower()
        for name in names:
            words = documented(name)
            root.execute_command(*[w for w in words if knows_setinfo or w != "+client|setinfo"])
        root.execute_command("ACL", "LOG", "RESET")
        yield {
            "root": server_url,
            **{name: server_url.replace("://", f"://{name}:change-me@") for name in names},
        }
        refused = root.execute_command("ACL", "LOG")
        for name in names:
            root.execute_command("ACL", "DELUSER", name)
    refusals = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in refused]
    assert not [(one[b"username"], one[b"reason"], one[b"object"]) for one in refusals]


def test_the_documented_users_have_all_the_rights_that_are_needed(
    users: dict[str, str], start_worker: StartWorker
) -> None:
    toml = 'max_waiting = 3\n[[routes.echo.endpoints]]\nbackend = "echo"\noptions = { fail_text = "BAD" }\n'
    toml += "[tenants.acme]\nrequests_per_minute = 600\n"
    worker = start_worker(users["worker"], toml=toml, SCHEDULER_LEASE_S="3")
    asyncio.run(_use_the_queue(users))
    for command in ADMIN:
        done = CliRunner().invoke(app, ["--redis-url", users["worker"], "admin", *command.split()])
        assert done.exit_code == 0, (command, done.stderr)
    worker.terminate()
    assert worker.wait(SOON_S) == 0


async def _use_the_queue(users: dict[str, str]) -> None:
    async with AsyncClient(users["client"]) as client:
        job = await client.enqueue("a", dedup_key="k", dedup=DedupMode.WINDOW, deadline_s=60, tenant="acme")
        await client.enqueue("a", dedup_key="k", dedup=DedupMode.WINDOW, tenant="acme")
        assert [event.type async for event in job.events()][-1] == "done"
        assert (await client.enqueue("a", dedup_key="k", dedup=DedupMode.WINDOW, tenant="acme")).deduplicated
        bad = await client.enqueue("BAD")
        with pytest.raises(JobFailed):
            await bad.result(timeout_s=SOON_S)

        later = await client.enqueue("b", delay_s=60, dedup_key="r", dedup=DedupMode.REPLACE)
        twin = await client.enqueue("c", delay_s=60, dedup_key="r", dedup=DedupMode.REPLACE)
        with pytest.raises(JobCancelled):
            await later.result(timeout_s=SOON_S)
        await twin.set_priority(9)
        assert (await twin.info()).priority == 9
        many = await client.enqueue_many([PromptRequest(prompt="x", delay_s=60)] * 3)
        assert sum(isinstance(one, QueueFull) for one in many) == 1
        await twin.cancel()

    await _run_prompt(users["root"])
    async with AsyncClient(users["worker"]) as client:
        assert (await admin.audit(client.queue)).problems == []


ADMIN = (
    "queue status",
    "queue pause echo",
    "queue resume echo",
    "queue purge echo --yes",
    "jobs list",
    "dedup list",
    "workers list",
    "top --once --interval 100ms",
    "dead list",
    "dead requeue --all --yes",
    "dead purge --all --yes",
    "audit --repair",
)


async def _run_prompt(url: str) -> None:
    """An arq application is a client of arq, with rights of its own."""
    pool = open_redis(url).connection_pool
    arq = ArqRedis(
        pool,
        job_serializer=arq_jobs.encode,
        job_deserializer=arq_jobs.decode,
        default_queue_name="ps:{default}:arq",
    )
    job = await arq.enqueue_job("run_prompt", {"prompt": "from arq"})
    assert job is not None
    assert (await job.result(timeout=SOON_S, poll_delay=0.1))["text"] == "from arq"
    await pool.disconnect()
