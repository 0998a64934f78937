"""Checks the results of the demo. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from scheduler.cli.output import age
from scheduler.model import JobInfo, Priority

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the demo."""

    passed: bool
    claim: str
    """What was checked, with the figures."""


def judge(
    answers: Sequence[Answer], jobs: Sequence[JobInfo], *, echoes: bool, elapsed_s: float
) -> list[Check]:
    """Compare the client's answers with the records of the jobs. `echoes`: answers repeat their prompts."""
    return [
        _all_answered(answers, echoes=echoes),
        _duplicates_ran_once(answers, jobs),
        _urgent_first(jobs),
        _streamed(answers, elapsed_s),
    ]


def _all_answered(answers: Sequence[Answer], *, echoes: bool) -> Check:
    right = [one for one in answers if "text" in one and (not echoes or one["text"] == one["prompt"])]
    claim = f"{len(answers)} prompts sent, {len(right)} answered"
    wrong = next((one for one in answers if one not in right), None)
    if wrong is not None:
        claim += f"; one of the others: {wrong.get('error', 'the answer belongs to another prompt')}"
    return Check(bool(answers) and wrong is None, claim)


def _duplicates_ran_once(answers: Sequence[Answer], jobs: Sequence[JobInfo]) -> Check:
    texts: defaultdict[str, set[str | None]] = defaultdict(set)
    for one in answers:
        texts[one["prompt"]].add(one.get("text"))
    differing = sum(len(said) > 1 for said in texts.values())
    duplicates = sum(bool(one.get("deduplicated")) for one in answers)
    runs = sum(job.attempts for job in jobs)
    passed = runs == len(jobs) == len(texts) and duplicates == len(answers) - len(texts) and not differing
    got = f"and {differing} got a different text" if differing else "and got its text"
    return Check(
        passed, f"{len(texts)} of them different, {runs} runs; {duplicates} duplicates shared one {got}"
    )


def _urgent_first(jobs: Sequence[JobInfo]) -> Check:
    by_end = sorted(jobs, key=lambda job: (job.ended_at_ms or 0, job.started_at_ms or 0))
    ranks = {job.id: rank for rank, job in enumerate(by_end, 1)}
    waits = _means(jobs, lambda job: ((job.started_at_ms or 0) - job.enqueued_at_ms) / 1000)
    ends = _means(jobs, lambda job: ranks[job.id])
    mean_waits = ", ".join(f"{_name(priority)} {age(wait_s)}" for priority, wait_s in waits.items())
    mean_ranks = ", ".join(f"{_name(priority)} {rank:.0f}" for priority, rank in ends.items())
    return Check(
        len(ends) > 1 and _rises(waits) and _rises(ends),
        f"urgent ones first; mean wait: {mean_waits}; mean rank at the finish: {mean_ranks}",
    )


def _means(jobs: Sequence[JobInfo], measure: Callable[[JobInfo], float]) -> dict[int, float]:
    """The mean of each priority, the most urgent first."""
    measured: defaultdict[int, list[float]] = defaultdict(list)
    for job in jobs:
        measured[job.priority].append(measure(job))
    return {priority: mean(measured[priority]) for priority in sorted(measured, reverse=True)}


def _rises(values: Mapping[int, float]) -> bool:
    return list(values.values()) == sorted(values.values())


def _name(priority: int) -> str:
    return Priority(priority).name.lower()


def _streamed(answers: Sequence[Answer], elapsed_s: float) -> Check:
    # A shared answer was generated, and streamed, once.
    firsts = [one for one in answers if "text" in one and not one["deduplicated"]]
    tokens = sum(one["output_tokens"] for one in firsts)
    pieces = sum(one["pieces"] for one in firsts)
    in_pieces = sum(one["pieces"] > 1 for one in firsts)
    other = sum(one["streamed"] != one["text"] for one in firsts)
    claim = (
        f"answers streamed: {tokens:,} tokens in {pieces:,} pieces and {elapsed_s:.1f} s, "
        f"{tokens / max(elapsed_s, 0.001):,.0f} tokens a second"
    )
    if other:
        claim += f"; the streamed text of {other} differs from their result"
    # An engine that is short of processor time sends many a short answer in one piece.
    if not in_pieces:
        claim += "; none came in more than one piece"
    return Check(tokens > 0 and not other and in_pieces > 0, claim)
