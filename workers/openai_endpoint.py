"""The addresses of OpenAI and compatible servers, and their authentication."""

from __future__ import annotations

from dataclasses import replace

import httpx

from workers.base import EndpointConfig
from workers.errors import WorkerConfigError
from workers.headers import bearer, check_key, has_credentials
from workers.http import HttpEndpoint
from workers.network import check_base_url, is_loopback
from workers.options import text_option

BASE_URL = "https://api.openai.com/v1"

_OPENAI_HOSTS = (".api.openai.com",)  # also eu.api.openai.com
# Source: https://learn.microsoft.com/azure/ai-foundry/foundry-models/concepts/endpoints
_AZURE_HOSTS = tuple(
    f".{service}.{cloud}"
    for service in ("openai", "cognitiveservices", "services.ai")
    for cloud in ("azure.com", "azure.us", "azure.cn")
)
_AZURE_PATH = "/openai/v1"


def openai_endpoint(config: EndpointConfig) -> HttpEndpoint:
    """The endpoint of an OpenAI server, with its key and account. `base_url` as for `OpenAIWorker`.

    Raises:
        WorkerConfigError: the URL, the key or an option is wrong.
    """
    base_url = _base_url(config)
    config = replace(config, api_key=_api_key(config, base_url))
    key = (_azure_key if is_azure(base_url) else bearer)(config)
    return HttpEndpoint(
        config, engine="openai", base_url=base_url, headers={**key, **_account(config, base_url)}
    )


def _base_url(config: EndpointConfig) -> str:
    base_url = config.base_url or config.environ.get("OPENAI_BASE_URL") or BASE_URL
    base_url = check_base_url(base_url)
    if httpx.URL(base_url).path.strip("/"):
        return base_url
    return base_url + (_AZURE_PATH if is_azure(base_url) else "/v1")


def _api_key(config: EndpointConfig, base_url: str) -> str | None:
    """The key of `api_key_env`, or OpenAI's or Azure's own key if this server may have it.

    Raises:
        WorkerConfigError: OpenAI needs a key, and there is none.
    """
    if config.api_key:
        return config.api_key
    if has_credentials(config):
        return None
    variables = ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY") if is_azure(base_url) else ("OPENAI_API_KEY",)
    keys = map(config.environ.get, variables if _may_have_openais_key(config, base_url) else ())
    if key := next(filter(None, keys), None):
        return key
    if is_openai(base_url):
        raise WorkerConfigError(
            f"api_key_env: OpenAI needs a key; set {variables[0]}, or name another variable in api_key_env"
        )
    return None


def _azure_key(config: EndpointConfig) -> dict[str, str]:
    """Azure's own header, which more of its hosts and versions accept than a bearer token."""
    return {"api-key": check_key(config.api_key)} if config.api_key else {}


def _account(config: EndpointConfig, base_url: str) -> dict[str, str]:
    environ = config.environ if _may_have_openais_key(config, base_url) else {}
    ids = {
        "OpenAI-Organization": text_option(config, "organization") or environ.get("OPENAI_ORG_ID"),
        "OpenAI-Project": text_option(config, "project") or environ.get("OPENAI_PROJECT_ID"),
    }
    return {name: value for name, value in ids.items() if value}


def _may_have_openais_key(config: EndpointConfig, base_url: str) -> bool:
    # If the settings name another provider, it must not get OpenAI's key.
    return not config.base_url or is_openai(base_url) or is_loopback(httpx.URL(base_url).host)


def is_openai(base_url: str) -> bool:
    """Whether this is OpenAI itself, or its models at Azure."""
    return f".{httpx.URL(base_url).host}".endswith(_OPENAI_HOSTS) or is_azure(base_url)


def is_azure(base_url: str) -> bool:
    """Whether this is Azure."""
    return f".{httpx.URL(base_url).host}".endswith(_AZURE_HOSTS)
