"""docs/guarantees.md names the tests that prove it: they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
LINES = re.findall(r"^- `(tests/\S+\.py)`: (.*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("path", "names"), LINES, ids=[path for path, _ in LINES])
def test_document_names_tests_that_are_there(path: str, names: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`", names)
    assert named
    assert [name for name in named if not re.search(rf"\bdef {name}\(", source)] == []


def test_every_promise_names_a_test() -> None:
    promises = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    numbered = [one for one in promises if one[0].isdigit()]
    assert [int(one.split(".")[0]) for one in numbered] == list(range(1, 13))
    assert [one.splitlines()[0] for one in numbered if "\n- `tests/" not in one] == []


def test_no_figure_is_left_to_be_filled_in() -> None:
    assert not re.findall(r"@\w+@", TEXT)
