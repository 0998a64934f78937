"""Embeddings and rerank of a llama-server that was started with `--embeddings` or `--reranking`.

An input has to fit one physical batch (`--ubatch-size`, 512 tokens by default). A longer one is refused as
`ContextOverflow`.

Source: tools/server/README.md of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.base import EndpointConfig
from workers.embedding import Embedded, EmbeddingTask
from workers.embedding_calls import EmbeddingCalls
from workers.errors import ModelNotFound
from workers.llama_cpp import LlamaServer, llama_cpp_endpoint
from workers.optional_fields import OptionalFields
from workers.options import refuse_unknown_options
from workers.rerank_calls import RerankCalls
from workers.vectors import to_floats


class _KindServer(LlamaServer):
    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, ())
        super().__init__(
            llama_cpp_endpoint(config), model=config.model, optional=OptionalFields("encoding_format")
        )


class LlamaCppEmbeddingWorker(_KindServer, EmbeddingCalls):
    """Embeds at one llama-server; `base_url` as for `LlamaCppWorker`. It takes no options."""

    async def embed(self, batch: Sequence[EmbeddingTask]) -> Sequence[Embedded]:
        """Embed a batch; see `EmbeddingWorker.embed`.

        A server that was started to rerank answers too, mostly with zeros: that is recognized.
        """
        embedded = await super().embed(batch)
        floats = to_floats(embedded[0].vectors[0])
        if 2 * floats.count(0.0) > len(floats):
            message = "llama.cpp answers with zeros: it was started to rerank; start it with `--embeddings`"
            raise ModelNotFound(message, log_text=message)
        return embedded


class LlamaCppRerankWorker(_KindServer, RerankCalls):
    """Reranks at one llama-server; `base_url` as for `LlamaCppWorker`. It takes no options."""
