"""Bad requests of one user against a real llama-server, which answers 500 to them: others notice nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scheduler import AsyncClient, JobFailed, PromptRequest
from scheduler.client import Job
from scheduler.queue.inspection.status import read_status
from tests.acceptance.conftest import StartWorker, start_worker  # noqa: F401  a fixture
from tests.engines.conftest import LlamaServer, StartServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

SOON_S = 60.0

# A template that knows tools, and hands the arguments of a call on as an object.
TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}{{- '<|im_start|>assistant\\n' }}
{%- for tool_call in message.tool_calls %}
{{- '<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
{{- tool_call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

HELLO = {"role": "user", "content": "hello"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def called_with(function: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A history with a call of a tool."""
    call = {"id": "1", "type": "function", "function": dict(function)}
    return [HELLO, {"role": "assistant", "tool_calls": [call]}, HELLO]


BAD: dict[str, dict[str, Any]] = {
    "image": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "tool without a function": {"messages": [HELLO], "tools": [{"type": "function"}]},
    "tool without a name": {"messages": [HELLO], "tools": [{"type": "function", "function": {}}]},
    "custom tool": {"messages": [HELLO], "tools": [{"type": "custom", "custom": {"name": "f"}}]},
    "call without arguments": {"messages": called_with({"name": "f"})},
    "call without a name": {"messages": called_with({"arguments": "{}"})},
    "malformed arguments": {"messages": called_with({"name": "f", "arguments": "{bad"}), "tools": [TOOL]},
}


@pytest.fixture
def servers(start_llama_server: StartServer, tmp_path: Path) -> list[LlamaServer]:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    flags = ("--jinja", "--chat-template-file", str(template))
    return [start_llama_server(*flags, slots=4, slot_tokens=1024) for _ in range(2)]


async def test_bad_requests_fail_once_with_the_engines_words_and_open_nothing(
    valkey_url: str,
    servers: list[LlamaServer],
    start_worker: StartWorker,  # noqa: F811  the fixture, by its name
) -> None:
    endpoints = "".join(
        f"""
        [[routes.chat.endpoints]]
        backend = "llama_cpp"
        base_url = "{server.base_url}"
        """
        for server in servers
    )
    start_worker(valkey_url, toml=endpoints)
    async with AsyncClient(valkey_url) as client:
        bad = {
            name: [
                await client.enqueue(PromptRequest(model="chat", tenant="careless", **fields))
                for _ in range(4)
            ]
            for name, fields in BAD.items()
        }
        good = [
            await client.enqueue(f"hello {n}", model="chat", params={"max_tokens": 4}, max_attempts=1)
            for n in range(20)
        ]
        for job in good:
            assert (await job.result(timeout_s=SOON_S)).attempts == 1
        for name, jobs in bad.items():
            for job in jobs:
                await _assert_refused(name, job)
        status = await read_status(client.queue)
    assert [one.breakers for one in status.endpoints] == [{"closed": 1}] * 2


async def _assert_refused(name: str, job: Job) -> None:
    with pytest.raises(JobFailed) as failed:
        await job.result(timeout_s=SOON_S)
    info = await job.info()
    assert (failed.value.reason, info.attempts) == ("request_rejected", 1), (name, info.error)
    assert info.error is not None
    assert "llama.cpp at" in info.error.message
