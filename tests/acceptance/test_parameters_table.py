"""The table of docs/parameters.md: each field through a worker process to a wire of each back end.

A field is kept if it is on the wire: then the cell names where, if that is not its own name. It is refused if
the enqueue or the job fails with words that name it. What comes back is seen too: choices, log probabilities.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from scheduler import AsyncClient, Delta, InvalidRequest, JobFailed, JobResult
from tests.acceptance.conftest import StartWorker
from tests.contracts.wire import FakeServer, Request, answer, listening, stream
from tests.patience import SOON_S
from workers.parameters import PARAMETERS

PAGE = Path(__file__).parents[2] / "docs" / "parameters.md"
FUNCTION = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
PLAIN = {"prompt": "Hi"}
HEAD = {"id": "1", "created": 5, "model": "m"}

# Route, and what a prompt of that column is.
COLUMNS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "openai": ("openai", CHAT),
    "openai, `completions`": ("legacy", PLAIN),
    "anthropic": ("anthropic", CHAT),
    "vllm, chat": ("vllm", CHAT),
    "vllm, prompt": ("vllm", PLAIN),
    "llama_cpp, chat": ("llama_cpp", CHAT),
    "llama_cpp, prompt": ("llama_cpp", PLAIN),
}
VALUES: Mapping[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 3,
    "echo": True,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": -1.5},
    "logprobs": True,
    "max_completion_tokens": 77,
    "max_tokens": 77,
    "min_p": 0.1,
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "1h"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "repetition_penalty": 1.1,
    "safety_identifier": "u",
    "seed": 3,
    "service_tier": "default",
    "stop": ["###"],
    "store": True,
    "suffix": "x",
    "temperature": 0.5,
    "top_k": 5,
    "top_logprobs": 2,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FIELDS: Mapping[str, dict[str, Any]] = {
    **{f"params.{name}": {"params": {name: VALUES[name]}} for name in sorted(PARAMETERS)},
    "tools": {"tools": [FUNCTION]},
    "tool_choice": {"tools": [FUNCTION], "tool_choice": "required"},
    "response_format": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    },
    "extra_body": {"extra_body": {"anything": {"b": 1, "a": 2}}},
}
SHOWN = {"params.parallel_tool_calls": {"tools": [FUNCTION]}}
"""What a field needs beside it to have a meaning."""
NAMED = {"tool_choice": "tools"}
"""The field that a refusal names, if it is another."""


class Wire(FakeServer):
    """Answers whatever is asked in the form of its path, with as many choices and log probabilities."""

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if not request.body:
            await answer(200, {"data": [{"id": "m"}], "total_slots": 64})(writer)
            return
        events = _ANSWERS[request.path.rpartition("/")[2]](request.body)
        await (stream(*events) if request.body["stream"] else answer(200, events[-1]))(writer)


def chat_events(body: Mapping[str, Any]) -> list[Any]:
    told = {"content": [{"token": "Hello", "logprob": -0.5, "top_logprobs": []}]}
    logprobs = told if body.get("logprobs") else None
    return [
        {
            **HEAD,
            "choices": [
                {"index": at, "delta": {"content": "Hello"}, "logprobs": logprobs, "finish_reason": "stop"}
            ],
        }
        for at in range(body.get("n") or 1)
    ] + [b"data: [DONE]\n\n"]


def completion_events(body: Mapping[str, Any]) -> list[Any]:
    told = {"tokens": ["Hello"], "token_logprobs": [-0.5], "top_logprobs": [None], "text_offset": [0]}
    logprobs = told if body.get("logprobs") is not None else None
    choices = [
        {"index": at, "text": "Hello", "logprobs": logprobs, "finish_reason": "stop"}
        for at in range(body.get("n") or 1)
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return (
        [*({**HEAD, "choices": [one]} for one in choices), b"data: [DONE]\n\n"]
        if body["stream"]
        else [{**HEAD, "choices": choices, "usage": usage}]
    )


def own_events(_: Mapping[str, Any]) -> list[Any]:
    return [{"index": 0, "content": "Hello", "stop": True, "stop_type": "eos", "tokens_predicted": 1}]


def message_events(_: Mapping[str, Any]) -> list[Any]:
    message = {"id": "1", "model": "m", "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]


_ANSWERS = {
    "completions": lambda body: chat_events(body) if "messages" in body else completion_events(body),
    "completion": own_events,
    "messages": message_events,
}


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with listening(Wire()) as server:
        yield server


ROUTE = """
[routes.{name}]
batch = {{ max_size = 1 }}
[[routes.{name}.endpoints]]
backend = "{backend}"
base_url = "{url}/{name}/v1"
model = "m"
max_in_flight = 64
{more}
"""


def configuration(url: str) -> str:
    routes = {
        "openai": ("openai", ""),
        "legacy": ("openai", "options = { completions = true }"),
        "anthropic": ("anthropic", ""),
        "vllm": ("vllm", "options = { try_priority = false }"),
        "llama_cpp": ("llama_cpp", ""),
    }
    return "\n".join(
        ROUTE.format(name=name, backend=one[0], url=url, more=one[1]) for name, one in routes.items()
    )


class Table:
    """Sends fields, and says what became of each."""

    def __init__(self, client: AsyncClient, wire: Wire) -> None:
        self._client = client
        self._wire = wire
        self._plain: dict[tuple[str, str], asyncio.Task[tuple[Mapping[str, Any], JobResult]]] = {}

    async def body(self, column: str, job_id: str, **fields: Any) -> tuple[Mapping[str, Any], JobResult]:
        """What goes over the wire for a request, found by its prompt, and what the caller gets."""
        route, prompt = COLUMNS[column]
        marked = orjson.loads(orjson.dumps(prompt).replace(b"Hi", job_id.encode()))
        job = await self._client.enqueue(model=route, job_id=job_id, **marked, **fields)
        deltas = [event.text async for event in job.events() if isinstance(event, Delta)]
        result = await job.result(timeout_s=SOON_S)
        assert "".join(deltas) == "Hello" * (len(result.choices) or 1)
        quoted = orjson.dumps(job_id)
        (body,) = [one for one in self._wire.bodies if one and quoted in orjson.dumps(one)]
        return body, result

    async def cell(self, column: str, field: str) -> str:
        job_id = f"{COLUMNS[column][0]}-{field}-{'messages' in COLUMNS[column][1]}"
        beside = SHOWN.get(field, {})
        try:
            body, result = await self.body(column, job_id, **beside, **FIELDS[field])
        except (InvalidRequest, JobFailed) as refused:
            said = str(refused)
        else:
            return await self.kept(column, field, body, result)
        return "refused" if NAMED.get(field, field) in said else f"refused with {said!r}"

    async def kept(self, column: str, field: str, body: Mapping[str, Any], result: JobResult) -> str:
        plain = await self.plain(column, field)
        changed = {
            name: value
            for name, value in body.items()
            if plain.get(name) != value and name not in {"messages", "prompt"}
        }
        assert changed, f"{column}: {field} has left no trace on the wire"
        self.check_result(field, result)
        own = field.removeprefix("params.")
        if (
            changed.get(own) == VALUES.get(own, changed.get(own)) and own in changed
        ) or field == "extra_body":
            return "kept"
        return ", ".join(f"`{name}`" for name in sorted(changed))

    async def plain(self, column: str, field: str) -> Mapping[str, Any]:
        """The body without the field: the same for most of them."""
        key = (column, field if field in SHOWN else "")
        if key not in self._plain:
            job_id = f"plain-{list(COLUMNS).index(column)}-{key[1]}"
            self._plain[key] = asyncio.create_task(self.body(column, job_id, **SHOWN.get(field, {})))
        return (await self._plain[key])[0]

    def check_result(self, field: str, result: JobResult) -> None:
        if field == "params.n":
            assert [(one.index, one.text) for one in result.choices] == [(0, "Hello"), (1, "Hello")]
        if field in {"params.logprobs", "params.top_logprobs"}:
            assert result.choices[0].logprobs


async def test_the_table_of_the_parameters_says_what_becomes_of_each_field(
    valkey_url: str, wire: Wire, start_worker: StartWorker
) -> None:
    await asyncio.to_thread(lambda: start_worker(valkey_url, toml=configuration(wire.base_url)))
    async with AsyncClient(valkey_url) as client:
        table = Table(client, wire)
        cells = await asyncio.gather(*(table.cell(column, field) for field in FIELDS for column in COLUMNS))
    rows = [f"| field | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for at, field in enumerate(FIELDS):
        rows.append(f"| `{field}` | {' | '.join(cells[at * len(COLUMNS) :][: len(COLUMNS)])} |")
    made = "\n".join(rows)
    assert made in PAGE.read_text(encoding="utf-8"), f"docs/parameters.md should have this table:\n{made}"
