"""Whether the demo has shown what it is to show. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from scheduler.cli.output import priority_text
from scheduler.model import JobInfo


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, and whether it was kept."""

    kept: bool
    claim: str


def judge(
    answers: Sequence[Mapping[str, Any]], jobs: Sequence[JobInfo], *, echoes: bool, elapsed_s: float
) -> list[Check]:
    """Compare what the client got with the records of the jobs that ran. `echoes`: answers repeat prompts."""
    return [
        _all_answered(answers, echoes=echoes),
        _duplicates_ran_once(answers, jobs),
        _urgent_first(jobs),
        _tokens(answers, elapsed_s),
    ]


def _all_answered(answers: Sequence[Mapping[str, Any]], *, echoes: bool) -> Check:
    right = [one for one in answers if "text" in one and (not echoes or one["text"] == one["prompt"])]
    claim = f"{len(answers)} prompts sent, {len(right)} answered"
    wrong = next((one for one in answers if one not in right), None)
    if wrong is not None:
        claim += f"; one of the others: {wrong.get('error', 'the answer is to another prompt')}"
    return Check(bool(answers) and wrong is None, claim)


def _duplicates_ran_once(answers: Sequence[Mapping[str, Any]], jobs: Sequence[JobInfo]) -> Check:
    different = len({one["prompt"] for one in answers})
    duplicates = sum(bool(one.get("deduplicated")) for one in answers)
    runs = sum(job.attempts for job in jobs)
    kept = runs == len(jobs) == different and duplicates == len(answers) - different
    return Check(kept, f"{different} of them different, {runs} runs; {duplicates} duplicates shared one")


def _urgent_first(jobs: Sequence[JobInfo]) -> Check:
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, job in enumerate(sorted(jobs, key=lambda job: job.ended_at_ms or 0), 1):
        places[job.priority].append(place)
    means = {priority: mean(places[priority]) for priority in sorted(places, reverse=True)}
    in_order = list(means.values())
    told = ", ".join(f"{priority_text(priority)}: {place:.0f}" for priority, place in means.items())
    return Check(
        len(means) > 1 and in_order == sorted(in_order),
        f"urgent ones first; mean place at the finish: {told}",
    )


def _tokens(answers: Sequence[Mapping[str, Any]], elapsed_s: float) -> Check:
    # A shared answer was generated once.
    generated = {one["job_id"]: one["output_tokens"] for one in answers if "job_id" in one}
    tokens = sum(generated.values())
    return Check(
        tokens > 0, f"{tokens:,} tokens in {elapsed_s:.1f} s, {tokens / max(elapsed_s, 0.001):,.0f} a second"
    )
