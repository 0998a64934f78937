"""How installations show that they go on."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "engines" / "progress.sh"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), "Doing it", *command], capture_output=True, text=True, check=False
    )


def test_what_is_done_and_how_long_it_took_is_said() -> None:
    done = run("sh", "-c", "echo a thousand lines; echo and more >&2")
    assert done.returncode == 0
    first, last = done.stderr.splitlines()
    assert first == "Doing it"
    assert last.startswith("  done in 0:")


def test_a_failure_shows_the_last_lines_and_keeps_its_code() -> None:
    done = run("sh", "-c", "echo fetching; echo no network >&2; exit 7")
    assert done.returncode == 7
    assert done.stderr.splitlines()[1:3] == ["fetching", "no network"]


def test_usage_is_a_mistake() -> None:
    assert run().returncode == 2
