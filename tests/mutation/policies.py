"""Put small mistakes into the policies in Python, by mutmut, and see that their unit tests notice them.

    python -m tests.mutation.policies

What is mutated and which tests run is in `pyproject.toml`. Prints the mutants that survive; exit status 1 if
fewer than 90 % are killed. Those in `equivalent.toml` are left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
MUTMUT = str(Path(sys.executable).with_name("mutmut"))
FIGURES = Path("mutants/mutmut-cicd-stats.json")
WANTED = 0.9


def main() -> int:
    if ran := subprocess.run([MUTMUT, "run"], check=False).returncode:
        return ran
    return report()


def report() -> int:
    """Print what survived of the last run."""
    left_out = 0
    for line in _run("results").splitlines():
        name, _, outcome = line.strip().partition(": ")
        taken, put_in = _changed(name)
        if (taken, put_in) in _equivalent():
            left_out += 1
        elif outcome in ("survived", "no tests"):
            print(f"{name} ({outcome})\n    {taken}\n  → {put_in}")
    _run("export-cicd-stats")
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    killed, tried = figures["killed"] + figures["timeout"], figures["total"] - left_out
    print(f"{killed} of {tried} killed ({killed / tried:.1%}); {left_out} equivalent")
    return 0 if killed >= WANTED * tried else 1


def _changed(name: str) -> tuple[str, str]:
    """The line that a mutant takes away, and the one that it puts in."""
    shown = _run("show", name)
    taken, put_in = (re.findall(rf"^{sign}(?![+-]{{2}})(.*)", shown, re.MULTILINE) for sign in ("-", r"\+"))
    return " ".join(taken).strip(), " ".join(put_in).strip()


@cache
def _equivalent() -> set[tuple[str, str]]:
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["policy"]
    return {(entry["line"], entry["mutant"]) for entry in entries}


def _run(*arguments: str) -> str:
    return subprocess.run([MUTMUT, *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
