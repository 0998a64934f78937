"""Embeddings at OpenAI and compatible servers; rerank at servers with Jina's or Cohere's format."""

from __future__ import annotations

from dataclasses import replace

from workers.base import EndpointConfig, Health
from workers.embedding_calls import EmbeddingCalls
from workers.errors import WorkerConfigError
from workers.http_worker import HttpWorker
from workers.openai_endpoint import is_azure, is_openai, openai_endpoint
from workers.optional_fields import OptionalFields
from workers.options import refuse_unknown_options
from workers.rerank_calls import RerankCalls

OPTIONS = ("organization", "project")


class _OpenAIServer(HttpWorker):
    models_path = "/models"
    request_id_header = "X-Client-Request-Id"

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, OPTIONS)
        super().__init__(
            openai_endpoint(config), model=config.model, optional=OptionalFields("encoding_format")
        )

    async def health(self) -> Health:
        """Ready when the server accepts the key. Azure's list is left out: its requests name deployments."""
        health = await super().health()
        return replace(health, models=()) if is_azure(self.endpoint.url) else health


class OpenAIEmbeddingWorker(_OpenAIServer, EmbeddingCalls):
    """Embeds at OpenAI or a server that is compatible with it; `base_url`, key and options as for chats."""

    embeddings_path = "/embeddings"


class OpenAIRerankWorker(_OpenAIServer, RerankCalls):
    """Reranks at a server with `/rerank` in Jina's or Cohere's format. OpenAI itself has none.

    `/rerank` is appended to `base_url`: `https://api.jina.ai/v1`, `https://api.cohere.com/v2`.
    """

    rerank_path = "/rerank"

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config)
        if is_openai(self.endpoint.url):
            raise WorkerConfigError(
                "base_url: OpenAI does not rerank; give the URL of a server that has /rerank"
            )
