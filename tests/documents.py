"""The code blocks of the README and the documentation, as tests read them.

A comment in front of a block says what to do with it: `<!-- not run: REASON -->`; `<!-- output -->` if it
shows what the block before it prints; `<!-- example output -->` if its commands are run but their output is
not compared, because it depends on what is in the queue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    )
)
RUNNABLE = ("python", "sh", "console")

_COMMENT = re.compile(r"<!--\s*(not run|output|example output)\s*(?::\s*(.*?))?\s*-->", re.DOTALL)


class Block(NamedTuple):
    """A code block. `line` is the line of its first line of code, counted from 1."""

    page: str
    line: int
    language: str
    code: str
    not_run: str | None = None
    """Why it is not run; None if it is run."""
    output: str | None = None
    """What it prints, with `…` for whatever differs from run to run; None if the page does not show it."""

    is_example: bool = False
    """Whether it runs, and may print something else."""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether a test runs it."""
        return self.language in RUNNABLE and self.not_run is None


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """All code blocks of a page, in order; the language of an indented one is "indented"."""
    found: list[Block] = []
    for block, mark in _marked_blocks(page):
        kind, reason = mark or ("", "")
        if kind == "output":
            found[-1] = found[-1]._replace(output=block.code)
        else:
            not_run = reason if kind == "not run" else None
            found.append(block._replace(not_run=not_run, is_example=kind == "example output"))
    return tuple(found)


def _marked_blocks(page: str) -> Iterator[tuple[Block, tuple[str, str] | None]]:
    mark = None
    for token in MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block") and token.map:
            fenced = token.type == "fence"
            language = token.info.strip() if fenced else "indented"
            yield Block(page, token.map[0] + 1 + fenced, language, token.content), mark
        comment = _COMMENT.fullmatch(token.content.strip()) if token.type == "html_block" else None
        mark = (comment[1], comment[2] or "") if comment else None


def commands(block: Block) -> list[tuple[str, str | None]]:
    """The commands of a `console` block, each with what it prints; those of a shell block as one."""
    if block.language != "console":
        return [(block.code, block.output)]
    _, *parts = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
    split = [part.partition("\n") for part in parts]
    return [(command, None if block.is_example else output) for command, _, output in split]


def matches(output: str, shown: str) -> bool:
    """Whether an output is what a page shows, `…` being anything."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None
