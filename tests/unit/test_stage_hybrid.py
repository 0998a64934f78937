"""Retrieval by words and by meaning: what is kept, what is made anew, and what a failing helper costs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from benchmarks.retrieval.__main__ import HERE, labelled
from scheduler.errors import ConfigError
from scheduler.settings import RagSettings, load_settings
from scheduler.stages.fusion import fuse
from scheduler.stages.rag import VECTORS, RagStage
from scheduler.stages.vector_index import LEAST_CHARS, VectorIndex
from scheduler.stages.vector_store import KEEP_DAYS, VectorStore, digest_of
from tests.patience import SOON_S
from tests.unit.test_stage_rag import found, make_context
from workers.errors import ContextOverflow, RequestRejected, WorkerUnavailable
from workers.vectors import to_bytes

MEANINGS = (("cat", "kitten", "feline"), ("money", "price", "cost"), ("rain", "weather", "umbrella"))


class Encoder:
    """Knows what some words mean. `asked` are the texts that it has embedded, with their priorities."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.error: Exception | None = None
        self.failures = 0
        self.most_chars = 10_000

    async def embed(self, texts: Sequence[str], priority: int) -> list[bytes]:
        await asyncio.sleep(0)
        if self.error is not None:
            self.failures += 1
            raise self.error
        if any(len(text) > self.most_chars for text in texts):
            raise ContextOverflow("too long")
        self.asked += [(text, priority) for text in texts]
        return [to_bytes(self._vector(text)) for text in texts]

    def _vector(self, text: str) -> list[float]:
        return [0.01 + sum(word in text.lower() for word in words) for words in MEANINGS]

    @property
    def passages(self) -> int:
        return sum(priority == 1 for _, priority in self.asked)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "animals.md").write_text("# Animals\n\nA kitten sleeps all day.\n")
    (documents / "shop.md").write_text("# Shop\n\nThe price of bread has risen.\n")
    (documents / "sky.md").write_text("# Sky\n\nTake an umbrella on Mondays.\n")
    return documents


@pytest.fixture
async def stages() -> AsyncIterator[list[RagStage]]:
    made: list[RagStage] = []
    yield made
    for stage in made:
        await stage.stop()


def add_stage(stages: list[RagStage], folder: Path, encoder: Encoder, *, model: str = "m") -> RagStage:
    settings = RagSettings(documents=folder, k=2, passage_words=20, embeddings="v")
    stage = RagStage(settings, "chat", check_every_s=0.0)
    stage.embed_with(encoder.embed, model=model)
    stages.append(stage)
    return stage


async def started(stages: list[RagStage], folder: Path, encoder: Encoder, *, model: str = "m") -> RagStage:
    stage = add_stage(stages, folder, encoder, model=model)
    await stage.start()
    await asyncio.wait_for(stage.ready(), SOON_S)
    return stage


async def test_a_passage_without_a_common_word_is_found_by_its_meaning(
    stages: list[RagStage], folder: Path, encoder: Encoder
) -> None:
    stage = await started(stages, folder, encoder)
    assert (await found(stage, "Where is my cat?"))[0] == "animals.md"
    assert (await found(stage, "What does it cost?"))[0] == "shop.md"
    assert encoder.asked[-1] == ("What does it cost?", 5), "a question has the priority of its job"
    context = make_context("feline")
    await stage.run(context)
    assert 0 < context.passages[0].score < 1


async def test_vectors_are_kept_and_only_what_is_new_is_embedded(
    stages: list[RagStage], folder: Path, encoder: Encoder
) -> None:
    await started(stages, folder, encoder)
    assert (folder / VECTORS).exists()
    assert encoder.passages == 3
    stage = await started(stages, folder, encoder)
    assert encoder.passages == 3, "a restart embeds nothing again"
    (folder / "new.md").write_text("Bad weather all week.\n")
    (folder / "sky.md").unlink()
    await found(stage, "a question, which looks for changes")
    await asyncio.wait_for(stage.ready(), SOON_S)
    assert encoder.passages == 4
    assert (await found(stage, "rain"))[0] == "new.md"
    await started(stages, folder, encoder, model="another")
    assert encoder.passages == 4 + 3, "vectors of another model are others"


async def test_until_the_vectors_are_there_words_are_enough(
    stages: list[RagStage], folder: Path, encoder: Encoder
) -> None:
    encoder.error = WorkerUnavailable("gone")
    stage = add_stage(stages, folder, encoder)
    await stage.start()
    assert await found(stage, "the price of bread") == ["shop.md"]


async def test_an_encoder_that_is_away_is_asked_again_and_said_once(
    stages: list[RagStage], folder: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.error = WorkerUnavailable("secret words", log_text="gone")
    index = VectorIndex(folder / VECTORS, model="m", setting="routes.chat.rag", again_s=0.001)
    stage = add_stage(stages, folder, encoder)
    assert stage._hybrid is not None
    stage._hybrid.vectors = index
    await stage.start()
    for _ in range(3):
        assert await found(stage, "bread") == ["shop.md"]
    while encoder.failures < 6:
        await asyncio.sleep(0.001)
    encoder.error = None
    await asyncio.wait_for(stage.ready(), SOON_S)
    assert (await found(stage, "feline"))[0] == "animals.md"
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert sorted(warnings) == [
        "routes.chat.rag.documents.embeddings: retrieval goes without it: gone",
        "routes.chat.rag: passages cannot be embedded, trying again: gone",
    ]


async def test_a_passage_that_is_too_long_is_known_by_its_beginning(
    stages: list[RagStage], folder: Path, encoder: Encoder
) -> None:
    (folder / "long.md").write_text("feline " + "and so on " * 15)
    encoder.most_chars = LEAST_CHARS
    stage = await started(stages, folder, encoder)
    assert "long.md" in await found(stage, "kitten")


async def test_a_passage_that_is_refused_however_short_is_found_by_its_words(
    stages: list[RagStage], folder: Path, encoder: Encoder
) -> None:
    embed = encoder.embed

    async def picky(texts: Sequence[str], priority: int) -> list[bytes]:
        if any("bread" in text for text in texts) and priority == 1:
            raise RequestRejected("no bread")
        return await embed(texts, priority)

    encoder.embed = picky
    stage = await started(stages, folder, encoder)
    assert (await found(stage, "bread"))[0] == "shop.md"
    assert (await found(stage, "feline"))[0] == "animals.md"


async def test_a_reranker_has_the_last_word_and_may_be_away(
    stages: list[RagStage], folder: Path, encoder: Encoder
) -> None:
    stage = await started(stages, folder, encoder)
    asked: list[tuple[str, int, int]] = []

    async def rank(query: str, documents: Sequence[str], priority: int) -> list[tuple[int, float]]:
        asked.append((query, len(documents), priority))
        if query == "fail":
            raise WorkerUnavailable("gone")
        order = sorted(range(len(documents)), key=lambda at: "umbrella" not in documents[at])
        return [(at, -float(rank)) for rank, at in enumerate(order)]

    stage.rank_with(rank)
    assert (await found(stage, "feline"))[0] == "sky.md"
    assert asked == [("feline", 3, 5)]
    assert len(await found(stage, "fail")) == 2


async def test_a_file_that_cannot_be_used_is_said_and_vectors_are_kept_in_memory(
    stages: list[RagStage], folder: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / VECTORS).write_text("this is no database, and longer than a header of one would have to be" * 9)
    stage = await started(stages, folder, encoder)
    assert (await found(stage, "feline"))[0] == "animals.md"
    assert "cannot be used (file is not a database)" in caplog.text


async def test_a_folder_with_nothing_in_it_gives_nothing(
    stages: list[RagStage], tmp_path: Path, encoder: Encoder
) -> None:
    stage = await started(stages, tmp_path, encoder)
    assert await found(stage, "anything") == []


def test_what_nobody_asks_for_is_dropped_after_a_while(tmp_path: Path) -> None:
    now = 1_000_000_000.0
    store = VectorStore(tmp_path / "v.sqlite", clock=lambda: now)
    old, used = digest_of("old"), digest_of("used")
    store.put("m", {old: b"1", used: b"2"})
    now += KEEP_DAYS * 86_400
    assert store.get("m", [used]) == {used: b"2"}
    now += 86_400
    store.put("m", {})
    assert store.get("m", [old, used, digest_of("never")]) == {used: b"2"}
    assert store.get("other", [used]) == {}
    many = {digest_of(str(number)): b"x" for number in range(1200)}
    store.put("m", many)
    assert store.get("m", list(many)) == many
    store.close()
    store.close()


def test_fusion_prefers_what_several_rankings_have() -> None:
    assert [item for item, _ in fuse(["a", "b", "c"], ["c", "d"])] == ["c", "a", "b", "d"]
    assert fuse(["a"]) == [("a", 1 / 61)]
    assert fuse([], []) == []


@pytest.mark.parametrize(
    ("rag", "words"),
    [
        (
            {"embeddings": "chat"},
            r'rag\.embeddings: give a route with kind = "embedding"; there are: vectors',
        ),
        ({"embeddings": "nowhere"}, "there are: vectors"),
        ({"rerank": "vectors"}, r'rag\.rerank: give a route with kind = "rerank"; there are: none yet'),
    ],
)
def test_helpers_have_to_be_routes_of_their_kind(rag: dict[str, str], words: str) -> None:
    echo = [{"backend": "echo"}]
    routes = {
        "chat": {"endpoints": echo, "rag": {"documents": ".", **rag}},
        "vectors": {"kind": "embedding", "endpoints": echo},
    }
    with pytest.raises(ConfigError, match=words):
        load_settings(environ={}, routes=routes)


def test_each_labelled_question_has_its_section() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (HERE / "documents").glob("*.md"))
    assert [one for one in labelled() if f"## {one.section}\n" not in text] == []
    assert len(labelled()) == 48
