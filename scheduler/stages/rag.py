"""The rag stage: passages from a folder of documents that go with the question, by words and by meaning."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from scheduler.errors import ConfigError
from scheduler.model import Source
from scheduler.settings import RagSettings
from scheduler.stages.base import PromptContext
from scheduler.stages.hybrid import HybridSearch, Rank, ranked, shortened
from scheduler.stages.messages import question_of
from scheduler.stages.passages import EMPTY, read, scan
from workers.errors import RequestRejected

if TYPE_CHECKING:
    from scheduler.stages.bm25 import Bm25Index
    from scheduler.stages.vector_index import Embed

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 2.0
MAX_QUESTION_CHARS = 8_000
VECTORS = ".vectors.sqlite"
"""The file of vectors, in the folder of documents. It is hidden, so it is no document."""


class RagStage:
    """Finds the passages that fit the prompt, or the last message of the user, and adds them to `passages`.

    The index is made at the start and kept in memory. At most every `check_every_s` seconds, the prompt that
    comes next looks whether files have changed, and waits for the new index; others go on with the old one.
    """

    name: Final = "rag"

    def __init__(self, settings: RagSettings, route: str, *, check_every_s: float = CHECK_EVERY_S) -> None:
        self._folder = settings.documents
        self._k = settings.k
        self._words = settings.passage_words
        self._setting = f"routes.{route}.rag.documents"
        self._check_every_s = check_every_s
        self._check_at = 0.0
        self._library = EMPTY
        self._index: Bm25Index | None = None
        self._loading = threading.Lock()
        self._unreadable = False
        self._vectors = settings.vectors or settings.documents / VECTORS
        self._hybrid: HybridSearch | None = None
        self._replaced: list[HybridSearch] = []

    async def start(self) -> None:
        """Read the folder and make the index, in a thread.

        Raises:
            ConfigError: there is no such folder, or bm25s is not installed.
        """
        if self._index is None:
            await asyncio.to_thread(self._load)
            if self._hybrid is not None and self._index is not None:
                self._hybrid.follow(self._index)

    def embed_with(self, embed: Embed, *, model: str) -> None:
        """Find passages by meaning too; `model` names who makes the vectors."""
        if self._hybrid is None or self._hybrid.vectors is None or self._hybrid.vectors.model != model:
            self._replaced += [self._hybrid] if self._hybrid else []
            self._hybrid = self._new_hybrid(model)
        self._hybrid.embed = embed

    def rank_with(self, rank: Rank) -> None:
        """Let a reranker put the best passages in order."""
        if self._hybrid is None:
            self._hybrid = HybridSearch(None, setting=self._setting)
        self._hybrid.rank = rank

    async def stop(self) -> None:
        """Stop making vectors. Safe to call twice."""
        for hybrid in (*self._replaced, self._hybrid):
            if hybrid is not None:
                await hybrid.stop()

    async def ready(self) -> None:
        """Return once the passages can be found by meaning, where that is wanted."""
        if self._hybrid is not None and self._hybrid.vectors is not None:
            await self._hybrid.vectors.ready()

    async def run(self, context: PromptContext) -> None:
        """Add up to `k` passages that fit the question, the best first."""
        if context.token_ids is not None:
            raise RequestRejected("prompt: this route retrieves by the words of a prompt; give it text")
        await self._ensure_fresh()
        question = shortened(question_of(context.prompt, context.messages), MAX_QUESTION_CHARS)
        context.passages.extend(await self._find(question, context.priority))

    async def _find(self, question: str, priority: int) -> list[Source]:
        if self._hybrid is None or self._index is None or not len(self._index):
            return await self._search(question)
        return await self._hybrid.find(self._index, question, k=self._k, priority=priority)

    async def _ensure_fresh(self) -> None:
        await self.start()
        while self._replaced:
            await self._replaced.pop().stop()
        now = monotonic()
        if now >= self._check_at:
            self._check_at = now + self._check_every_s
            await asyncio.to_thread(self._reload_if_changed)

    async def _search(self, question: str) -> list[Source]:
        index = self._index
        if index is None or not len(index):
            return []
        return [index.source(*hit) for hit in await ranked(index, question, k=self._k)]

    def _new_hybrid(self, model: str) -> HybridSearch:
        try:
            from scheduler.stages.vector_index import VectorIndex  # noqa: PLC0415  an optional extra
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self._setting}: retrieval needs {error.name}; pip install 'prompt-scheduler[rag]'"
            ) from None
        return HybridSearch(
            VectorIndex(self._vectors, model=model, setting=self._setting), setting=self._setting
        )

    def _load(self) -> None:
        with self._loading:
            if self._index is not None:
                return
            _require_folder(self._folder, self._setting)
            try:
                self._reload()
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"{self._setting}: retrieval needs {error.name}; pip install 'prompt-scheduler[rag]'"
                ) from None
            except OSError as error:
                raise ConfigError(
                    f"{self._setting}: {self._folder} cannot be read: {error.strerror}"
                ) from None
            self._check_at = monotonic() + self._check_every_s

    def _reload_if_changed(self) -> None:
        if not self._loading.acquire(blocking=False):
            return
        try:
            self._reload()
            self._unreadable = False
        except OSError as error:
            if not self._unreadable:
                logger.warning(
                    "%s: %s cannot be read: %s; its old passages stay", self._setting, self._folder, error
                )
            self._unreadable = True
        finally:
            self._loading.release()

    def _reload(self) -> None:
        from scheduler.stages.bm25 import Bm25Index  # noqa: PLC0415  an optional extra

        stamps = scan(self._folder)
        if self._index is not None and stamps == self._library.stamps:
            return
        self._library = read(self._folder, stamps, words=self._words, before=self._library)
        self._index = Bm25Index(self._library.all())
        logger.info("%s: %d passages of %d files", self._setting, len(self._index), len(stamps))


def _require_folder(folder: Path, setting: str) -> None:
    if not folder.exists():
        raise ConfigError(f"{setting}: there is no folder {folder}; make it, or give the path of another one")
    if not folder.is_dir():
        raise ConfigError(f"{setting}: {folder} is a file; give the folder that it is in")
