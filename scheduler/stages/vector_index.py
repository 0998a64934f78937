"""Finds passages by their vectors. Needs numpy (the extra `rag`), so it is imported only where that is on.

The search is exact: a matrix of all vectors, times that of the question. For as many passages as a folder may
have that takes milliseconds, finds everything, and has nothing to build.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from scheduler.logs import traced
from scheduler.stages.passages import Passage
from scheduler.stages.vector_store import VectorStore, digest_of
from workers.errors import RequestRejected, WorkerError

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Passages that are embedded in one call."""
AGAIN_S = 5.0
"""The wait after a call that has failed."""
LEAST_CHARS = 100
"""The beginning of a passage that a vector may be made of, if the whole is too long."""
BACKGROUND = 1
"""The priority of passages: questions go first."""

Embed: TypeAlias = Callable[[Sequence[str], int], Awaitable[Sequence[bytes]]]
"""Embeds some texts, with a priority."""
Matrix: TypeAlias = npt.NDArray[np.float32]


class VectorIndex:
    """The vectors of a folder's passages, kept in a file and brought up to date in the background.

    `model` names who makes the vectors: those of another one are not used. `setting` is for the log.
    """

    def __init__(self, path: Path, *, model: str, setting: str, again_s: float = AGAIN_S) -> None:
        self._path = path
        self.model = model
        self._setting = setting
        self._again_s = again_s
        self._store: VectorStore | None = None
        self._wanted: Sequence[Passage] = ()
        self._built: tuple[Sequence[Passage], Matrix] | None = None
        self._building: asyncio.Task[None] | None = None

    def follow(self, passages: Sequence[Passage], embed: Embed) -> None:
        """Bring the index up to date with these passages, if it is not."""
        if passages is self._wanted:
            return
        self._cancel()
        self._wanted = passages
        self._building = asyncio.create_task(
            self._try_build(passages, embed), name=f"vectors {self._setting}"
        )

    async def search(self, passages: Sequence[Passage], vector: bytes, *, k: int) -> list[int]:
        """The numbers of the `k` passages nearest to a vector, the nearest first; none before it is ready."""
        if self._built is None or self._built[0] is not passages:
            return []
        matrix, question = self._built[1], _rows([vector])[0]
        if not len(matrix) or matrix.shape[1] != question.size:
            return []
        return await asyncio.to_thread(_nearest, matrix, question, k)

    async def ready(self) -> None:
        """Return once the passages that it follows can be found."""
        if self._building is not None:
            await asyncio.wait([self._building])

    async def stop(self) -> None:
        """Stop building, and close the file. Safe to call twice."""
        building = self._building
        self._cancel()
        if building is not None:
            await asyncio.wait([building])
        store, self._store = self._store, None
        if store is not None:
            await asyncio.to_thread(store.close)

    def _cancel(self) -> None:
        building, self._building = self._building, None
        if building is not None:
            building.cancel()

    async def _try_build(self, passages: Sequence[Passage], embed: Embed) -> None:
        try:
            await self._build(passages, embed)
        except Exception as error:
            logger.error("%s: the vectors cannot be made", self._setting, exc_info=traced(error, logger))
            self._wanted = ()  # the next prompt begins again

    async def _build(self, passages: Sequence[Passage], embed: Embed) -> None:
        digests = await asyncio.to_thread(_digests, passages)
        texts = dict(zip(digests, (passage.text for passage in passages), strict=True))
        vectors = await self._known(list(texts))
        missing = [digest for digest in texts if digest not in vectors]
        for at in range(0, len(missing), AT_ONCE):
            some = missing[at : at + AT_ONCE]
            fresh = await self._embedded([texts[digest] for digest in some], embed)
            made = dict(zip(some, fresh, strict=True))
            vectors |= made
            await self._keep(made)
        rows = [vectors[digest] for digest in digests]
        self._built = (passages, await asyncio.to_thread(_rows, rows))
        logger.info("%s: %d vectors, %d of them new", self._setting, len(rows), len(missing))

    async def _embedded(self, texts: Sequence[str], embed: Embed) -> Sequence[bytes]:
        failed = False
        while True:
            try:
                return await embed(texts, BACKGROUND)
            except RequestRejected:
                return await self._one_by_one(texts, embed)
            except WorkerError as error:
                if not failed:
                    what = error.log_text or error.code
                    logger.warning("%s: passages cannot be embedded, trying again: %s", self._setting, what)
                failed = True
            await asyncio.sleep(self._again_s)

    async def _one_by_one(self, texts: Sequence[str], embed: Embed) -> Sequence[bytes]:
        """The vectors of texts of which one is refused: of half of it, if it is too long, or none."""
        if len(texts) > 1:
            middle = len(texts) // 2
            first = await self._embedded(texts[:middle], embed)
            return [*first, *await self._embedded(texts[middle:], embed)]
        (text,) = texts
        if len(text) > LEAST_CHARS:
            return await self._embedded([text[: len(text) // 2]], embed)
        logger.warning("%s: a passage cannot be embedded; it is found by its words alone", self._setting)
        return [b""]

    async def _known(self, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        try:
            return await asyncio.to_thread(self._read, digests)
        except sqlite3.Error as error:
            logger.warning(
                "%s: %s cannot be used (%s): vectors are made again at each start; give the path of a file "
                "that can be written",
                self._setting,
                self._path,
                error,
            )
            self._store = VectorStore(None)
            return {}

    def _read(self, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        if self._store is None:
            self._store = VectorStore(self._path)
        return self._store.get(self.model, digests)

    async def _keep(self, vectors: dict[bytes, bytes]) -> None:
        if self._store is None:
            return
        try:
            await asyncio.to_thread(self._store.put, self.model, vectors)
        except sqlite3.Error as error:
            logger.warning("%s: vectors cannot be kept in %s: %s", self._setting, self._path, error)


def _digests(passages: Sequence[Passage]) -> list[bytes]:
    return [digest_of(passage.text) for passage in passages]


def _rows(vectors: Sequence[bytes]) -> Matrix:
    """Vectors of length 1, one a row. One of another dimension is zero: nothing is near it."""
    width = max(map(len, vectors), default=0)
    same = [vector if len(vector) == width else bytes(width) for vector in vectors]
    matrix = np.frombuffer(b"".join(same), "<f4").reshape(len(vectors), width // 4).astype(np.float32)
    lengths: Any = np.linalg.norm(matrix, axis=1, keepdims=True)
    unit: Matrix = np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > 0)
    return unit


def _nearest(matrix: Matrix, question: Matrix, k: int) -> list[int]:
    scores = matrix @ question
    best = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    return [int(number) for number in best[np.argsort(-scores[best], kind="stable")]]
