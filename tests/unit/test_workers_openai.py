"""Where OpenAI's own key goes, and what OpenAI itself is asked otherwise than others."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from workers import EndpointConfig, Generation, WorkerUnavailable
from workers.contract import collect
from workers.http import HttpEndpoint
from workers.openai import OpenAIWorker

ENVIRON = {"OPENAI_API_KEY": "sk-openai", "OPENAI_ORG_ID": "org-1"}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """The requests that would have been sent."""
    requests: list[httpx.Request] = []

    async def send(_: httpx.AsyncClient, request: httpx.Request, *, stream: bool) -> httpx.Response:
        requests.append(request)
        raise httpx.ConnectError("the network is closed")

    monkeypatch.setattr(httpx.AsyncClient, "send", send)
    return requests


async def ask(**config: Any) -> None:
    worker = OpenAIWorker(EndpointConfig("openai", environ=ENVIRON, **config))
    with pytest.raises(WorkerUnavailable):
        await collect(worker, [Generation("gpt", prompt="a", params={"max_tokens": 7})])
    await worker.aclose()


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("", "max_completion_tokens"),
        ("https://api.openai.com", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://mine.cognitiveservices.azure.com/openai/v1", "max_completion_tokens"),
        ("https://mine.services.ai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.us/openai/deployments/d", "max_completion_tokens"),
        ("https://openai.azure.com.example.org/v1", "max_tokens"),
        ("https://notapi.openai.com.example.org", "max_tokens"),
        ("http://127.0.0.1:8000", "max_tokens"),
    ],
)
async def test_openai_gets_the_limit_of_tokens_under_its_newer_name(
    sent: list[httpx.Request], base_url: str, expected: str
) -> None:
    await ask(base_url=base_url)
    body = orjson.loads(sent[0].content)
    assert body[expected] == 7
    assert len({"max_tokens", "max_completion_tokens"} & body.keys()) == 1


async def test_legacy_completion_keeps_the_old_name(sent: list[httpx.Request]) -> None:
    await ask(options={"completions": True})
    assert sent[0].url == "https://api.openai.com/v1/completions"
    assert orjson.loads(sent[0].content)["max_tokens"] == 7


@pytest.mark.parametrize(
    ("base_url", "trusted"),
    [
        ("", True),
        ("https://api.openai.com/v1", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("http://127.0.0.1:8000/v1", True),
        ("https://api.openai.com.example.org/v1", False),
        ("https://notapi.openai.com", False),
        ("https://api.groq.com/openai/v1", False),
        ("http://10.0.0.7:8000", False),
    ],
)
async def test_openais_key_is_given_to_no_other_provider(
    sent: list[httpx.Request], base_url: str, trusted: bool
) -> None:
    await ask(base_url=base_url)
    headers = sent[0].headers
    assert headers.get("authorization") == ("Bearer sk-openai" if trusted else None)
    assert headers.get("openai-organization") == ("org-1" if trusted else None)


AZURE = "https://mine.services.ai.azure.com"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("", "/openai/v1/chat/completions"),
        ("/openai/v1/", "/openai/v1/chat/completions"),
        ("/openai/deployments/d", "/openai/deployments/d/chat/completions"),
    ],
)
async def test_azure_has_a_path_and_a_header_of_its_own(
    sent: list[httpx.Request], path: str, url: str
) -> None:
    await ask(base_url=AZURE + path, api_key="azure-key")
    assert sent[0].url == AZURE + url
    assert sent[0].headers["api-key"] == "azure-key"
    assert "authorization" not in sent[0].headers


@pytest.mark.parametrize(("base_url", "models"), [(AZURE, ()), ("https://engine.example", ("gpt-1",))])
async def test_models_that_azure_lists_are_no_names_to_ask_by(
    monkeypatch: pytest.MonkeyPatch, base_url: str, models: tuple[str, ...]
) -> None:
    async def get(self: HttpEndpoint, path: str) -> dict[str, Any]:
        return {"data": [{"id": "gpt-1"}]}

    monkeypatch.setattr(HttpEndpoint, "get", get)
    worker = OpenAIWorker(EndpointConfig("openai", base_url, api_key="key"))
    assert (await worker.health()).models == models
    await worker.aclose()


async def test_azures_own_variable_goes_before_openais(sent: list[httpx.Request]) -> None:
    environ = {"AZURE_OPENAI_API_KEY": "azure-key", "OPENAI_API_KEY": "sk-openai"}
    worker = OpenAIWorker(EndpointConfig("openai", AZURE, environ=environ))
    with pytest.raises(WorkerUnavailable):
        await collect(worker, [Generation("gpt", prompt="a")])
    await worker.aclose()
    assert sent[0].headers["api-key"] == "azure-key"


async def test_a_header_of_the_settings_stands_for_the_key(sent: list[httpx.Request]) -> None:
    await ask(base_url=AZURE, headers={"authorization": "Bearer entra-token"})
    assert sent[0].headers.get_list("authorization") == ["Bearer entra-token"]
    assert "api-key" not in sent[0].headers
