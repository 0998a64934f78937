from __future__ import annotations

import asyncio
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from scheduler.errors import ConfigError
from scheduler.settings import RagSettings
from scheduler.stages import hybrid, passages, rag
from scheduler.stages.base import PromptContext
from scheduler.stages.bm25 import Bm25Index
from scheduler.stages.passages import Passage, split_markdown, split_text
from scheduler.stages.rag import RagStage
from tests.patience import SOON_S


def make_context(prompt: str | None, messages: list[dict[str, Any]] | None = None) -> PromptContext:
    return PromptContext(
        job_id="j1",
        attempt=1,
        route="chat",
        tenant="default",
        priority=5,
        prompt=prompt,
        messages=messages,
        params={},
        request={},
    )


async def found(stage: RagStage, question: str) -> list[str]:
    context = make_context(question)
    await stage.run(context)
    return [passage.path for passage in context.passages]


def make_stage(folder: Path, *, k: int = 4, passage_words: int = 20, check_every_s: float = 0.0) -> RagStage:
    settings = RagSettings(documents=folder, k=k, passage_words=passage_words)
    return RagStage(settings, "chat", check_every_s=check_every_s)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide/install.md").write_text("# Install\n\nUse pip to install the scheduler.\n")
    (tmp_path / "redis.txt").write_text("The queue lives in Redis and is bounded.\n")
    (tmp_path / "sky.MARKDOWN").write_text("Rayleigh scattering makes the sky blue.\n")
    (tmp_path / "code.py").write_text("pip = 'pip'\n")
    return tmp_path


async def test_the_passages_that_fit_the_question_are_found(folder: Path) -> None:
    context = make_context("How do I install it with pip?")
    await make_stage(folder).run(context)
    (passage,) = context.passages
    assert passage.path == "guide/install.md"
    assert passage.text == "# Install\n\nUse pip to install the scheduler."
    assert passage.score > 0


async def test_the_last_message_of_the_user_is_the_question(folder: Path) -> None:
    parts = [{"type": "text", "text": "Why is the sky blue?"}]
    context = make_context(None, [{"role": "user", "content": "pip"}, {"role": "user", "content": parts}])
    await make_stage(folder).run(context)
    assert [passage.path for passage in context.passages] == ["sky.MARKDOWN"]


async def test_at_most_k_passages_come_the_best_first(tmp_path: Path) -> None:
    for number in range(1, 7):
        (tmp_path / f"{number}.txt").write_text("queue " * number + "filler " * (7 - number))
    assert await found(make_stage(tmp_path, k=3), "queues") == ["6.txt", "5.txt", "4.txt"]


async def test_more_wanted_than_there_are_brings_all_that_fit(folder: Path) -> None:
    assert set(await found(make_stage(folder, k=100), "pip sky redis")) == {
        "guide/install.md",
        "redis.txt",
        "sky.MARKDOWN",
    }


@pytest.mark.parametrize("question", ["", "how is the", "zebra", "?!", "\n"])
async def test_a_question_that_shares_no_word_finds_nothing(folder: Path, question: str) -> None:
    assert await found(make_stage(folder), question) == []


@pytest.mark.parametrize("text", [None, "", "  \n", "---\n***\n", "the of and"])
async def test_a_folder_with_nothing_to_say_finds_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.md").write_text(text)
    assert await found(make_stage(tmp_path), "anything") == []


async def test_words_are_found_in_languages_without_spaces(tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("天空为什么是蓝色的", encoding="utf-8")
    (tmp_path / "en.txt").write_text("Something else")
    assert await found(make_stage(tmp_path), "蓝") == ["zh.txt"]


async def test_a_long_prompt_is_searched_by_its_beginning_and_its_end(folder: Path) -> None:
    assert await found(make_stage(folder), "pip " + "zebra " * 10_000 + " redis") == [
        "redis.txt",
        "guide/install.md",
    ]


async def test_files_that_cannot_be_used_are_skipped_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "MAX_FILE_BYTES", 1000)
    (folder / "latin.txt").write_bytes("sky blau grün".encode("latin-1"))
    (folder / "huge.txt").write_text("sky " * 1000)
    (folder / "nowhere.txt").symlink_to(folder / "missing")
    (folder / ".hidden.txt").write_text("sky")
    (folder / ".git").mkdir()
    (folder / ".git/sky.txt").write_text("sky")
    assert await found(make_stage(folder), "sky") == ["sky.MARKDOWN"]
    assert f"{folder / 'latin.txt'} is left out: it is not UTF-8 (byte 11)" in caplog.text
    assert f"{folder / 'huge.txt'} is left out: it has more than 1,000 bytes; split it" in caplog.text


async def test_what_is_over_the_bounds_of_all_files_is_skipped(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "MAX_FILES", 1)
    assert await found(make_stage(folder), "sky pip redis") == ["redis.txt"]
    assert f"{folder / 'sky.MARKDOWN'} is left out: there is more than 1 files" in caplog.text


async def test_a_byte_order_mark_and_windows_line_ends_do_not_show(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbf# Sky\r\n\r\nblue\r\n")
    context = make_context("sky")
    await make_stage(tmp_path).run(context)
    assert context.passages[0].text == "# Sky\n\nblue"


@pytest.mark.parametrize("kind", ["missing", "file"])
async def test_a_missing_folder_names_the_setting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "documents"
    if kind == "file":
        path.write_text("x")
    with pytest.raises(ConfigError, match=r"^routes\.chat\.rag\.documents: .*documents"):
        await make_stage(path).start()


async def test_without_bm25s_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scheduler.stages.bm25", raising=False)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r"retrieval needs bm25s.*; pip install 'prompt-scheduler\[rag\]'"):
        await make_stage(folder).start()


async def test_new_changed_and_deleted_files_are_noticed(folder: Path) -> None:
    stage = make_stage(folder)
    assert await found(stage, "sky") == ["sky.MARKDOWN"]
    (folder / "new.txt").write_text("Another sky.")
    assert set(await found(stage, "sky")) == {"new.txt", "sky.MARKDOWN"}
    (folder / "new.txt").write_text("Another thing altogether.")
    (folder / "sky.MARKDOWN").unlink()
    assert await found(stage, "sky") == []
    assert await found(stage, "thing") == ["new.txt"]


async def test_only_changed_files_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(folder)
    await stage.start()
    read: list[str] = []
    original = passages._read_file

    def noting(root: Path, path: str, words: int) -> tuple[Passage, ...]:
        read.append(path)
        return original(root, path, words)

    monkeypatch.setattr(passages, "_read_file", noting)
    with monkeypatch.context() as unchanged:
        unchanged.setattr(rag, "read", lambda *args, **kwargs: pytest.fail("read again"))
        await found(stage, "sky")
    (folder / "redis.txt").write_text("Redis holds the queue, and the sky.")
    assert set(await found(stage, "sky")) == {"redis.txt", "sky.MARKDOWN"}
    assert read == ["redis.txt"]


async def test_between_two_looks_the_folder_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(folder, check_every_s=3600)
    await stage.start()
    monkeypatch.setattr(rag, "scan", lambda folder: pytest.fail("looked"))
    assert await found(stage, "sky") == ["sky.MARKDOWN"]


async def test_a_folder_that_vanishes_leaves_its_passages_and_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make_stage(folder)
    await stage.start()
    folder.rename(folder.with_name("moved"))
    for _ in range(3):
        assert await found(stage, "sky") == ["sky.MARKDOWN"]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    folder.with_name("moved").rename(folder)
    (folder / "sky.MARKDOWN").unlink()
    assert await found(stage, "sky") == []


async def test_others_go_on_with_the_old_index_while_a_new_one_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(folder)
    await stage.start()
    reading, go_on = threading.Event(), threading.Event()

    def slow_scan(root: Path) -> dict[str, passages.Stamp]:
        reading.set()
        assert go_on.wait(SOON_S)
        return passages.scan(root)

    monkeypatch.setattr(rag, "scan", slow_scan)
    (folder / "new.txt").write_text("Another sky.")
    first = asyncio.create_task(found(stage, "sky"))
    assert await asyncio.to_thread(reading.wait, SOON_S)
    assert await found(stage, "sky") == ["sky.MARKDOWN"]
    assert not first.done()
    go_on.set()
    assert set(await first) == {"new.txt", "sky.MARKDOWN"}


async def test_a_large_index_is_searched_in_a_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    ranked = Bm25Index.ranked

    def noting(self: Bm25Index, question: str, *, k: int) -> Any:
        threads.append(threading.current_thread())
        return ranked(self, question, k=k)

    monkeypatch.setattr(Bm25Index, "ranked", noting)
    stage = make_stage(folder)
    assert await found(stage, "sky") == ["sky.MARKDOWN"]
    monkeypatch.setattr(hybrid, "_INLINE_PASSAGES", 1)
    assert await found(stage, "sky") == ["sky.MARKDOWN"]
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


async def test_retrieval_says_nothing_of_its_own(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await found(make_stage(folder), "sky")
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records if record.name.startswith("bm25s")] == []


async def test_starting_twice_reads_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(folder, check_every_s=3600)
    await stage.start()
    monkeypatch.setattr(rag, "read", lambda *args, **kwargs: pytest.fail("read again"))
    await stage.start()
    await asyncio.gather(*(found(stage, "sky") for _ in range(3)))


def test_linked_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data/a.txt").write_text("sky")
    (tmp_path / "a.txt").symlink_to("..data/a.txt")
    assert list(passages.scan(tmp_path)) == ["a.txt"]


def words(count: int, prefix: str = "w") -> str:
    return " ".join(f"{prefix}{number}" for number in range(count))


def test_paragraphs_are_packed_up_to_the_size_of_a_passage() -> None:
    text = "\n\n".join([words(8, "a"), words(8, "b"), words(8, "c")])
    assert split_text(text, words=20) == [f"{words(8, 'a')}\n\n{words(8, 'b')}", words(8, "c")]


def test_a_long_paragraph_is_cut_between_words() -> None:
    pieces = split_text(words(45), words=20)
    assert [len(piece.split()) for piece in pieces] == [20, 20, 5]
    assert " ".join(pieces) == words(45)


def test_the_last_piece_of_a_long_paragraph_is_packed_with_the_next() -> None:
    assert (
        split_text(f"{words(25, 'a')}\n\n{words(5, 'b')}", words=20)[1]
        == f"a20 a21 a22 a23 a24\n\n{words(5, 'b')}"
    )


def test_markdown_is_cut_at_headings_and_each_passage_says_under_which() -> None:
    text = "intro\n\n# A\n\na text\n\n## B\nb text\n\n### C ###\nc text\n\n## D\nd text\n\n# E\n"
    assert split_markdown(text, words=100) == [
        "intro",
        "# A\n\na text",
        "# A\n## B\n\nb text",
        "# A\n## B\n### C ###\n\nc text",
        "# A\n## D\n\nd text",
    ]


def test_code_blocks_are_neither_cut_nor_read_as_headings() -> None:
    block = "```sh\n# no heading\n\nls\n~~~\n```"
    assert split_markdown(f"# A\n\n{block}\n\n## B\nb", words=100) == [f"# A\n\n{block}", "# A\n## B\n\nb"]


def test_a_code_block_that_fits_a_passage_stays_whole() -> None:
    block = f"```\n{words(7, 'a')}\n\n{words(7, 'b')}\n```"
    assert split_markdown(f"{words(10)}\n\n{block}", words=20) == [words(10), block]


def test_a_long_section_repeats_its_heading() -> None:
    pieces = split_markdown(f"# A\n\n{words(15, 'a')}\n\n{words(15, 'b')}", words=20)
    assert pieces == [f"# A\n\n{words(15, 'a')}", f"# A\n\n{words(15, 'b')}"]


def test_equal_scores_keep_the_order_of_the_passages() -> None:
    index = Bm25Index([Passage(f"{number}.txt", "same words") for number in range(9)])
    assert [source.path for source in index.search("word", k=9)] == [f"{number}.txt" for number in range(9)]


@pytest.mark.parametrize(
    ("written", "asked"),
    [("policies", "policy"), ("queue", "queues"), ("class", "class"), ("STRASSE", "Straße")],
)
def test_plural_and_case_do_not_hide_a_word(written: str, asked: str) -> None:
    assert len(Bm25Index([Passage("a", written)]).search(asked, k=1)) == 1
