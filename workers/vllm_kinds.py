"""Embeddings and rerank of a vLLM server that runs a pooling model.

Source: https://docs.vllm.ai/en/latest/models/pooling_models.html
"""

from __future__ import annotations

from contextlib import suppress

from workers.base import EndpointConfig, Health
from workers.embedding_calls import EmbeddingCalls
from workers.errors import RequestRejected, WorkerError
from workers.http_worker import HttpWorker
from workers.optional_fields import OptionalFields
from workers.options import refuse_unknown_options
from workers.rerank_calls import RerankCalls
from workers.vllm import vllm_endpoint


class _VllmServer(HttpWorker):
    request_id_header = "X-Request-Id"

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, ())
        super().__init__(
            vllm_endpoint(config), model=config.model, optional=OptionalFields("encoding_format")
        )

    async def health(self) -> Health:
        """Ready when the engine runs and the server accepts the key."""
        try:
            with suppress(RequestRejected):  # a proxy passes on only /v1
                await self.endpoint.get_bytes("/health")
            models = await self.models()
        except WorkerError as error:
            return Health(ready=False, detail=str(error))
        return Health(ready=True, models=models, warnings=self.optional.warnings, exclusive=True)


class VllmEmbeddingWorker(_VllmServer, EmbeddingCalls):
    """Embeds at one vLLM server; `base_url` and key as for `VllmWorker`. It takes no options."""


class VllmRerankWorker(_VllmServer, RerankCalls):
    """Reranks at one vLLM server; `base_url` and key as for `VllmWorker`. It takes no options."""

    rerank_path = "/rerank"  # under /v1 it logs a warning
