"""Reading a folder of text and Markdown files, and cutting them into passages."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".md", ".markdown")
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_FILES = 20_000
MAX_TOTAL_BYTES = 256 * 1024 * 1024

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]{{1,64}}")
"""A word: what scripts with spaces call one, up to 64 characters; in Chinese and Japanese, each character."""

_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file; `path` is relative to the folder, with forward slashes."""

    path: str
    text: str


Stamp = tuple[int, int]
"""When a file was modified, in nanoseconds, and how many bytes it has: equal stamps mean an equal file."""


def scan(folder: Path) -> dict[str, Stamp]:
    """List the files that count, by their path relative to the folder, in order.

    Hidden files and folders are left out, and linked folders are not followed.

    Raises:
        OSError: the folder itself cannot be read.
    """
    os.scandir(folder).close()
    found: dict[str, Stamp] = {}
    for path in _walk(folder):
        try:
            status = path.stat()
        except OSError:
            continue  # gone since it was listed, or a link to nowhere
        found[path.relative_to(folder).as_posix()] = (status.st_mtime_ns, status.st_size)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent, name)


@dataclass(frozen=True, slots=True)
class Library:
    """The passages of a folder, by file, and the stamps that the files had."""

    stamps: Mapping[str, Stamp]
    passages: Mapping[str, tuple[Passage, ...]]

    def all(self) -> list[Passage]:
        """Every passage, in the order of files and of the text in them."""
        return [passage for of_file in self.passages.values() for passage in of_file]


EMPTY = Library({}, {})


def read(folder: Path, stamps: Mapping[str, Stamp], *, words: int, before: Library = EMPTY) -> Library:
    """Read the files and cut them; what has not changed since `before` is taken from there.

    A file that cannot be read, is no UTF-8 or is over the bounds is skipped, with a warning in the log.
    """
    passages: dict[str, tuple[Passage, ...]] = {}
    left = MAX_TOTAL_BYTES
    for number, (path, stamp) in enumerate(stamps.items()):
        if before.stamps.get(path) == stamp:
            passages[path] = before.passages.get(path, ())
        elif number >= MAX_FILES or stamp[1] > left:
            _skip(folder, path, f"there is more than {MAX_FILES:,} files or {MAX_TOTAL_BYTES:,} bytes in all")
        else:
            passages[path] = _read_file(folder, path, words)
        left -= stamp[1] if path in passages else 0
    return Library(stamps, passages)


def _read_file(folder: Path, path: str, words: int) -> tuple[Passage, ...]:
    try:
        with (folder / path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return _skip(folder, path, error.strerror or "it cannot be read")
    if len(content) > MAX_FILE_BYTES:
        return _skip(folder, path, f"it has more than {MAX_FILE_BYTES:,} bytes; split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _skip(folder, path, f"it is not UTF-8 (byte {error.start})")
    text = text.replace("\r\n", "\n")
    cut = (
        split_text(text, words=words) if path.lower().endswith(".txt") else split_markdown(text, words=words)
    )
    return tuple(Passage(path, piece) for piece in cut)


def _skip(folder: Path, path: str, why: str) -> tuple[Passage, ...]:
    logger.warning("rag: %s is left out: %s", folder / path, why)
    return ()


def split_text(text: str, *, words: int) -> list[str]:
    """Cut a text into passages of about `words` words, between paragraphs where that is possible."""
    return list(_pack(_paragraphs(text.split("\n")), words))


def split_markdown(text: str, *, words: int) -> list[str]:
    """Cut Markdown at its `#` headings, then like any text.

    Each passage opens with the heading of its section and of those around it: they say what it is about.
    """
    passages: list[str] = []
    for headings, lines in _sections(text):
        for piece in _pack(_paragraphs(lines), words):
            passages.append("\n".join(headings) + "\n\n" + piece if headings else piece)
    return passages


def _sections(text: str) -> Iterator[tuple[list[str], list[str]]]:
    headings: dict[int, str] = {}
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        fence = _fence_after(line, fence)
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        yield list(headings.values()), lines
        depth = len(heading[1])
        headings = {outer: kept for outer, kept in headings.items() if outer < depth} | {depth: line.strip()}
        lines = []
    yield list(headings.values()), lines


def _fence_after(line: str, fence: str) -> str:
    """Return the fence of the code block that is open after this line, or nothing."""
    match = _FENCE.match(line)
    if not match:
        return fence
    if not fence:
        return match[1]
    closes = match[1].startswith(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Split at blank lines, but not inside a fenced code block."""
    paragraph: list[str] = []
    fence = ""
    for line in lines:
        fence = _fence_after(line, fence)
        if line.strip() or fence:
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _pack(paragraphs: Iterator[str], words: int) -> Iterator[str]:
    packed: list[str] = []
    room = words
    for paragraph in paragraphs:
        for piece, count in _cut(paragraph, words):
            if packed and count > room:
                yield "\n\n".join(packed)
                packed, room = [], words
            packed.append(piece)
            room -= count
    if packed:
        yield "\n\n".join(packed)


def _cut(paragraph: str, words: int) -> Iterator[tuple[str, int]]:
    """Cut a paragraph after a number of words; yields the pieces and how many words each has."""
    begins = [match.start() for match in WORD.finditer(paragraph)]
    borders = [0, *begins[words::words], len(paragraph)]
    for number, (begin, end) in enumerate(pairwise(borders)):
        piece = paragraph[begin:end].rstrip()
        if piece:
            yield piece, min(words, len(begins) - number * words)
