"""What an autoscaler reads at the keys that deploy/keda names, as the user that docs/security.md gives it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
import yaml

from scheduler import AsyncClient, PromptRequest
from tests.acceptance.conftest import StartWorker, slow_echo
from tests.acceptance.conftest import start_worker as start_worker  # noqa: PLC0414  a fixture
from tests.conftest import accepted
from tests.patience import SOON_S

ROOT = Path(__file__).parents[2]

# KEDA asks in this way: the kind of the key decides how its length is read.
LENGTH = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'zset' then return redis.call('ZCARD', KEYS[1]) end
return redis.call('LLEN', KEYS[1])
"""


class Autoscaler:
    """Reads as KEDA's Redis scaler does."""

    def __init__(self, reader: redis.Redis) -> None:
        self.reader = reader
        scaled = next(yaml.safe_load_all((ROOT / "deploy" / "keda" / "scaledobject.yaml").read_text()))
        self._keys = {
            one["name"]: one["metadata"]["listName"].replace("chat", "echo")
            for one in scaled["spec"]["triggers"]
        }

    def look(self) -> dict[str, int]:
        """The value of each trigger."""
        return {name: int(str(self.reader.eval(LENGTH, 1, key))) for name, key in self._keys.items()}

    async def sees(self, **wanted: int) -> None:
        """Wait until the triggers have these values: the leading process writes them once a second."""
        async with asyncio.timeout(SOON_S):
            while not wanted.items() <= (await asyncio.to_thread(self.look)).items():
                await asyncio.sleep(0.02)


@pytest.fixture
def autoscaler(server_url: str) -> Iterator[Autoscaler]:
    (command,) = re.findall(
        r"^ACL SETUSER autoscaler .*$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE
    )
    with closing(redis.Redis.from_url(server_url)) as root:
        knows_setinfo = "setinfo" in str(root.execute_command("CLIENT", "HELP")).lower()
        root.execute_command(*[w for w in command.split() if knows_setinfo or w != "+client|setinfo"])
        with closing(redis.Redis.from_url(server_url.replace("://", "://autoscaler:change-me@"))) as reader:
            yield Autoscaler(reader)
        root.execute_command("ACL", "DELUSER", "autoscaler")


async def test_autoscaler_sees_work_that_waits_for_the_first_worker_process_and_then_for_more(
    server_url: str, autoscaler: Autoscaler, start_worker: StartWorker
) -> None:
    nothing = {"work-chat": 0, "running": 0, "wake-chat": 0, "delayed": 0, "held": 0}
    assert autoscaler.look() == nothing
    async with AsyncClient(server_url) as client:
        later = await client.enqueue("later", model="echo", delay_s=3600)
        assert autoscaler.look() == {**nothing, "delayed": 1}
        await later.cancel()

        jobs = accepted(await client.enqueue_many([PromptRequest(prompt="a b", model="echo")] * 5))
        assert autoscaler.look() == {**nothing, "wake-chat": 1}, "nobody is there who could reckon the work"

        # One place, taken for long; a second a job while nobody knows better.
        toml = slow_echo(60, max_in_flight=1)
        worker = await asyncio.to_thread(start_worker, server_url, toml=toml, SCHEDULER_LEASE_S="3")
        await autoscaler.sees(**{"work-chat": 4, "running": 1})

        for job in jobs[1:]:
            await job.cancel()
        await autoscaler.sees(**{"work-chat": 0, "running": 1})
    worker.kill()


@pytest.mark.parametrize(
    "command",
    [
        "DEL ps:{default}:work:echo",
        "RPUSH ps:{default}:work:echo x",
        "LRANGE ps:{default}:k:echo 0 -1",
        "HGETALL ps:{default}:meta",
        "GET ps:{default}:p:1",
        "KEYS *",
        "INFO",
    ],
)
def test_autoscaler_can_read_nothing_else_and_change_nothing(autoscaler: Autoscaler, command: str) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        autoscaler.reader.execute_command(*command.split())


def test_autoscaler_cannot_change_anything_from_a_script_either(autoscaler: Autoscaler) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|can.t run this command"):
        autoscaler.reader.eval("return redis.call('DEL', KEYS[1])", 1, "ps:{default}:work:echo")
