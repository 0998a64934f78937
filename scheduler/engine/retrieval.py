"""Gives the rag stage of a route the routes that embed and rerank for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scheduler.stages.kinds import embed_texts, rank_texts
from scheduler.stages.rag import RagStage

if TYPE_CHECKING:
    from scheduler.engine.routes import Route


def link_retrieval(route: Route, routes: Mapping[str, Route]) -> None:
    """Let the rag stage of a route, if it has one, call the routes that its settings name."""
    settings = route.settings.rag
    for stage in route.pipeline.stages:
        if settings is not None and isinstance(stage, RagStage):
            helpers = [routes[name] if name else None for name in (settings.embeddings, settings.rerank)]
            _link(stage, *helpers)


def _link(stage: RagStage, embedder: Route | None, reranker: Route | None) -> None:
    if embedder is not None:

        async def embed(texts: Sequence[str], priority: int) -> Sequence[bytes]:
            return await embed_texts(embedder.inference, embedder.name, texts, priority)

        # Vectors of another model, or by another adapter, are others.
        stage.embed_with(embed, model=f"{embedder.name} {embedder.settings.revision}")
    if reranker is not None:

        async def rank(query: str, documents: Sequence[str], priority: int) -> Sequence[tuple[int, float]]:
            return await rank_texts(reranker.inference, reranker.name, query, documents, priority)

        stage.rank_with(rank)
