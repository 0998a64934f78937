"""The contract of every model worker, and TGI's own features. No test needs a TGI server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fake_tgi import HEAD, FakeTgi, chunk, event, fake_tgi
from prompt_scheduler_tgi import TgiWorker

from workers import (
    EndpointConfig,
    Generation,
    RequestRejected,
    TokenUsage,
    WorkerConfigError,
    WorkerError,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerUnavailable,
    make_worker,
)
from workers.contract import GenerationContract, collect

PROMPT = Generation("tiny", prompt="one two three", params={"max_tokens": 2})


@pytest.fixture
async def server() -> AsyncIterator[FakeTgi]:
    async with fake_tgi() as fake:
        yield fake


@pytest.fixture
async def worker(server: FakeTgi) -> AsyncIterator[TgiWorker]:
    worker = TgiWorker(EndpointConfig("tgi", server.url))
    yield worker
    await worker.aclose()


class TestTgiWorker(GenerationContract):
    """The contract suite."""

    @pytest.fixture
    async def worker(self, server: FakeTgi) -> AsyncIterator[TgiWorker]:
        self.server = server
        worker = TgiWorker(EndpointConfig("tgi", server.url))
        yield worker
        await worker.aclose()

    @pytest.fixture
    def unreachable_worker(self) -> TgiWorker:
        return TgiWorker(EndpointConfig("tgi", "http://127.0.0.1:9"))

    @pytest.fixture
    def silent_worker(self, silent_url: str) -> TgiWorker:
        return TgiWorker(EndpointConfig("tgi", silent_url, timeout_s=0.5))

    def refused(self) -> Generation:
        return self.generation(params={"temperature": "hot"})

    async def generating(self, worker: object) -> int:
        return self.server.generating


def test_the_package_makes_it_known() -> None:
    assert isinstance(make_worker(EndpointConfig("tgi", "http://127.0.0.1:8080")), TgiWorker)


async def test_parameters_are_translated(server: FakeTgi, worker: TgiWorker) -> None:
    params = {"max_tokens": 2, "temperature": 0.0, "top_p": 1.0, "stop": "end", "seed": 7}
    await collect(worker, [Generation("tiny", prompt="a b", params=params, extra_body={"watermark": True})])
    assert server.bodies == [
        {
            "inputs": "a b",
            "parameters": {
                "details": True,
                "max_new_tokens": 2,
                "stop": ["end"],
                "seed": 7,
                "watermark": True,
            },
        }
    ]


async def test_usage_and_finish_reason_are_the_servers(server: FakeTgi, worker: TgiWorker) -> None:
    server.script = HEAD + event("hi", last=True, said=5, read=3, reason="eos_token") + b"0\r\n\r\n"
    (answer,) = await collect(worker, [PROMPT])
    assert (answer.completed.finish_reason, answer.completed.usage) == ("stop", TokenUsage(3, 5))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (HEAD + event("cut") + b"0\r\n\r\n", WorkerProtocolError),
        (HEAD + chunk({"error": "Model is overloaded", "error_type": "overloaded"}), WorkerOverloaded),
        (HEAD + chunk({"token": 5}), WorkerProtocolError),
        (b"HTTP/1.1 429 X\r\nContent-Length: 0\r\n\r\n", WorkerOverloaded),
        (b"HTTP/1.1 424 X\r\nContent-Length: 0\r\n\r\n", WorkerUnavailable),
        (b"HTTP/1.1 422 X\r\nContent-Length: 0\r\n\r\n", RequestRejected),
    ],
)
async def test_what_goes_wrong_has_its_error(
    server: FakeTgi, worker: TgiWorker, script: bytes, expected: type[WorkerError]
) -> None:
    server.script = script
    with pytest.raises(expected):
        await collect(worker, [PROMPT])


async def test_capacity_and_models_are_the_servers(worker: TgiWorker) -> None:
    assert await worker.capacity() == 128
    assert (await worker.health()).models == ("tiny",)


def test_options_are_checked() -> None:
    with pytest.raises(WorkerConfigError, match=r"options\.speed"):
        TgiWorker(EndpointConfig("tgi", "http://127.0.0.1:8080", options={"speed": 1}))
