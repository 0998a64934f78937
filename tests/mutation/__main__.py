"""Put small mistakes into the queue's Lua scripts, and see that the contract tests on fakeredis notice each.

    python -m tests.mutation [--sample N] [--seed N] [--jobs N] [FILE[:LINE] …]

Tries a sample of all mutants, or every mutant of the files and lines that are named, as in `tick` and
`lib/order:74`. Prints those that survive, as it finds them; exit status 1 if fewer than 90 % are killed.
Those in `equivalent.toml` change nothing that anybody could see, and are left out.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from scheduler.queue import scripts
from tests.mutation.lua import Mutant, mutants
from tests.mutation.pool import Trial

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
WANTED = 0.9
PATIENCE_S = "2"


def main() -> int:
    options = _options()
    every = list(_all())
    wanted = [one for one in every if _is_named(one, options.named)] if options.named else every
    left_out = _equivalent(every)
    tried = [one for one in wanted if one not in left_out]
    if not options.named:
        tried = random.Random(options.seed).sample(tried, min(options.sample, len(tried)))
    os.environ["TEST_PATIENCE_S"] = PATIENCE_S
    trial = Trial(sorted(tried, key=lambda one: (one.file, one.number)), options.jobs)
    arguments = [
        "tests/contracts/test_queue_fakeredis.py",
        "-qq",
        "--no-header",
        "--no-summary",
        "-p",
        "no:xdist",
    ]
    arguments += [
        "-p",
        "no:xdist",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]  # this program has imported it before
    if code := pytest.main(arguments, plugins=[trial]):
        return int(code)
    return _report(trial, len(every), len([one for one in wanted if one in left_out]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("named", nargs="*", metavar="FILE[:LINE]")
    parser.add_argument("--sample", type=int, default=150, help="mutants to try (150)")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="processes (one a core)")
    return parser.parse_args()


def _all() -> Iterator[Mutant]:
    folder = Path(str(resources.files(scripts.__package__ or "").joinpath("lua")))
    for path in sorted(folder.rglob("*.lua")):
        yield from mutants(
            path.relative_to(folder).with_suffix("").as_posix(), path.read_text(encoding="utf-8")
        )


def _is_named(mutant: Mutant, names: list[str]) -> bool:
    return mutant.file in names or f"{mutant.file}:{mutant.number}" in names


def _equivalent(every: list[Mutant]) -> set[Mutant]:
    """The mutants that `equivalent.toml` names, by the text of their lines."""
    found = set()
    for entry in tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["equivalent"]:
        same = {one for one in every if _text(one) == (entry["file"], entry["line"], entry["mutant"])}
        if not same:
            sys.exit(f"{EQUIVALENT.name}: there is no such mutant any more; take it out: {entry}")
        found |= same
    return found


def _text(mutant: Mutant) -> tuple[str, str, str]:
    return mutant.file, mutant.line.strip(), mutant.instead.strip()


def _report(trial: Trial, every: int, left_out: int) -> int:
    tried = len(trial.outcomes)
    killed = tried - trial.survived
    print(
        f"{killed} of {tried} killed ({killed / tried:.1%}), of {every} that there are; {left_out} equivalent"
    )
    return 0 if killed >= WANTED * tried else 1


if __name__ == "__main__":
    sys.exit(main())
