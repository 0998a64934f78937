"""The echo worker keeps the port's promises."""

from __future__ import annotations

import pytest

from workers.base import EndpointConfig, Generation, GenerationWorker
from workers.contract import GenerationContract
from workers.echo import EchoWorker


class TestEchoWorker(GenerationContract):
    model = "echo"
    endless_prompt = "again " * 10_000

    @pytest.fixture
    def worker(self) -> GenerationWorker:
        return EchoWorker(EndpointConfig(backend="echo", options={"fail_text": "forbidden"}))

    @pytest.fixture
    def silent_worker(self) -> GenerationWorker:
        return EchoWorker(EndpointConfig("echo", timeout_s=0.5, options={"first_delay_s": 60}))

    def refused(self) -> Generation:
        return self.generation("a forbidden prompt")


class TestSlowEchoWorker(TestEchoWorker):
    @pytest.fixture
    def worker(self) -> GenerationWorker:
        options = {"fail_text": "forbidden", "delay_s": 0.001, "first_delay_s": 0.001, "capacity": 4}
        return EchoWorker(EndpointConfig(backend="echo", options=options))
