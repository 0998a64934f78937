"""Ranking passages by BM25. Needs `bm25s` (the extra `rag`), so it is imported only where retrieval is on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence

import bm25s
from bm25s.stopwords import STOPWORDS_EN_PLUS

from scheduler.model import Source
from scheduler.stages.passages import WORD, Passage

# bm25s sets its own logger to DEBUG, which would write into the log of any application.
logging.getLogger("bm25s").setLevel(logging.WARNING)

_STOP_WORDS = frozenset(word for entry in STOPWORDS_EN_PLUS for word in re.split(r"\W", entry))


class Bm25Index:
    """An immutable index over passages. Searching is safe from several threads at once."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = tuple(passages)
        self._vocabulary: dict[str, int] = {}
        numbered = [[self._number(term) for term in _terms(passage.text)] for passage in self._passages]
        self._scores = bm25s.BM25(method="lucene")
        if self._vocabulary:
            self._scores.index((numbered, self._vocabulary), create_empty_token=False, show_progress=False)

    def __len__(self) -> int:
        return len(self._passages)

    def _number(self, term: str) -> int:
        return self._vocabulary.setdefault(term, len(self._vocabulary))

    @property
    def passages(self) -> Sequence[Passage]:
        """All passages, by their numbers."""
        return self._passages

    def search(self, question: str, *, k: int) -> list[Source]:
        """Return at most `k` passages that share a word with the question, the best first."""
        return [self.source(number, score) for number, score in self.ranked(question, k=k)]

    def ranked(self, question: str, *, k: int) -> list[tuple[int, float]]:
        """The same as numbers of passages, with their scores."""
        terms = {self._vocabulary[term] for term in _terms(question) if term in self._vocabulary}
        if not terms:
            return []
        scores = self._scores.get_scores_from_ids(sorted(terms))
        hits = scores.nonzero()[0]
        if hits.size > k:
            hits = hits[scores[hits].argpartition(-k)[-k:]]
        ranked = sorted((-float(scores[hit]), int(hit)) for hit in hits)
        return [(number, -negated) for negated, number in ranked]

    def source(self, number: int, score: float) -> Source:
        """A passage by its number, as a prompt gets it."""
        passage = self._passages[number]
        return Source(path=passage.path, score=round(score, 4), text=passage.text)


def _terms(text: str) -> Iterator[str]:
    for word in WORD.findall(text.casefold()):
        if word not in _STOP_WORDS:
            yield _singular(word)


def _singular(word: str) -> str:
    """Take off an English plural ending. Source: Harman, How effective is suffixing?, 1991: the S stemmer."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("us", "ss")):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    return word[:-1]
