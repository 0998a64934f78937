"""The documentation's site builds without a warning, and its navigation has every page."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scheduler
import workers

ROOT = Path(__file__).parents[2]
SAID_WHEN_ALL_IS_WELL = ("Build started", "No issues found", "Build finished")


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the site is built in."""
    folder = tmp_path_factory.mktemp("docs") / "docs"
    subprocess.run([sys.executable, "docs/gather.py", str(folder)], cwd=ROOT, check=True)
    return folder


def in_navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for place in entry.values():
            yield from in_navigation(place) if isinstance(place, list) else (place,)


def test_site_builds_without_a_warning(gathered: Path) -> None:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(gathered / "zensical.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 0, "\n".join(said)
    assert [line for line in said if not line.startswith(SAID_WHEN_ALL_IS_WELL)] == []
    assert (gathered / "site" / "index.html").exists()


def test_navigation_has_every_page_once(gathered: Path) -> None:
    navigation = tomllib.loads((gathered / "zensical.toml").read_text())["project"]["nav"]
    pages = gathered / "pages"
    assert sorted(in_navigation(navigation)) == sorted(
        str(path.relative_to(pages)) for path in pages.rglob("*.md")
    )


@pytest.mark.parametrize("package", [scheduler, workers])
def test_api_reference_has_every_public_name(package: Any) -> None:
    text = (ROOT / "docs" / "api" / f"{package.__name__}.md").read_text(encoding="utf-8")
    shown = {line.removeprefix("::: ") for line in text.splitlines() if line.startswith("::: ")}
    unions = {"Event", "Output"}  # of classes that are there
    assert {f"{package.__name__}.{name}" for name in package.__all__ if name not in unions} <= shown
