"""Compares what clients were promised with what they saw, with Redis, and with the calls of engines."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
import redis.asyncio

from scheduler import admin
from scheduler.model import JobState
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import START
from tests.chaos.arena import MAIN, SIDE, Arena, SentinelSet
from tests.chaos.load import KINDS, NO_END

REPEATED = "engine calls made again after a loss"
WASTED = "tokens streamed for nothing"
PAGE = 500
PROBLEMS_SHOWN = 20
LOSSES_OF_POISON = 3
LOST_BY_A_FAILOVER_S = 2.0
ENDED = frozenset(state.value for state in JobState if state.ended)
UNWELCOME = ("Traceback", " ERROR ", "Task was destroyed", "never retrieved", "Unclosed")


@dataclass
class Promise:
    """A job that a client was told of, by whichever of its tickets."""

    kind: str
    at: float
    heard: list[str] = field(default_factory=list)


@dataclass
class Verdict:
    """What an arena came to. `figures` are for people; any of `problems` is a failure."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print it."""
        print(f"\n{self.name}")
        for name, figure in self.figures.items():
            print(f"  {name:<54}{figure:>12,}" if isinstance(figure, int) else f"  {name:<54}{figure:>12}")
        for problem in self.problems[:PROBLEMS_SHOWN]:
            print(f"  PROBLEM: {problem}")
        if len(self.problems) > PROBLEMS_SHOWN:
            print(f"  … and {len(self.problems) - PROBLEMS_SHOWN:,} more")
        if not self.problems:
            print("  nothing lost, nothing twice, nothing leaked")


async def judge(arena: Arena) -> Verdict:
    """Look at everything after the fight; the worker processes have drained."""
    verdict = Verdict(type(arena.server).__name__)
    verdict.problems += arena.strange_ends
    totals: Counter[str] = Counter()
    async with redis.asyncio.Redis.from_url(arena.server.direct_url) as client:
        for name in (MAIN, SIDE):
            queue = PromptQueue(client, name)
            await queue.load()
            meta = await client.hgetall(queue.keys.fixed("meta"))
            totals.update({key[2:].decode(): int(n) for key, n in meta.items() if key.startswith(b"t:")})
            await _judge_jobs(arena, queue, _promises(arena, queue, verdict), verdict)
            await _judge_leftovers(queue, verdict)
    _judge_logs(arena, verdict)
    verdict.figures |= {
        "jobs enqueued": totals["enqueued"],
        "leases lost": totals["lost"],
        "quarantined": totals["quarantined"],
        "worker processes killed": arena.kills,
        "worker processes that died of poison": arena.deaths,
    }
    dead = arena.kills + arena.deaths
    for name in (REPEATED, WASTED):
        verdict.figures[f"  a dead process, {name}"] = f"{verdict.figures[name] / max(1, dead):.1f}"
    verdict.figures["repeated, as the queue counted"] = totals["repeated"]
    verdict.figures["tokens wasted, as the queue estimated"] = totals["wasted_tokens"]
    return verdict


def _promises(arena: Arena, queue: PromptQueue, verdict: Verdict) -> dict[str, Promise]:
    promises: dict[str, Promise] = {}
    odd: list[dict[str, Any]] = []
    for line in _ledger_lines(arena, queue):
        match line["what"]:
            case "acked":
                promises.setdefault(line["id"], Promise(line["kind"], line["at"]))
            case "ended":
                promises[line["id"]].heard.append(line["how"])
            case "odd":
                odd.append(line)
    for line in odd:
        promise = promises.get(line["id"])
        # Where Redis has lost a part of a job, a part of it is what its readers get.
        if line["said"] == NO_END or promise is None or not _may_be_half(arena, promise):
            verdict.problems.append(f"{line.get('kind')} job {line['id']}: {line['said']}")
    return promises


def _may_be_gone(arena: Arena, promise: Promise) -> bool:
    """Whether Redis may have lost the job: forgotten it, or promised it right before or in a failover."""
    if isinstance(arena.server, SentinelSet):
        near = LOST_BY_A_FAILOVER_S
        return any(began - near <= promise.at <= ended + near for began, ended in arena.failovers)
    return arena.server.loses is not None and promise.at <= arena.forgot_at


def _may_be_half(arena: Arena, promise: Promise) -> bool:
    """Whether Redis may have lost a part of the job, its end for one, that its readers have heard of."""
    return isinstance(arena.server, SentinelSet) or _may_be_gone(arena, promise)


def _ledger_lines(arena: Arena, queue: PromptQueue) -> Iterator[dict[str, Any]]:
    for path in arena.ledgers(queue.name):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # the process was killed in the middle of it


async def _judge_jobs(
    arena: Arena, queue: PromptQueue, promises: dict[str, Promise], verdict: Verdict
) -> None:
    calls = _calls(arena)
    figures: Counter[str] = Counter({"jobs promised": len(promises), REPEATED: 0, WASTED: 0})
    for page in _pages(promises.items()):
        for (job_id, promise), (record, events) in zip(
            page, await _read(queue, [job_id for job_id, _ in page]), strict=True
        ):
            if not record:
                figures[arena.server.loses or "gone"] += 1
                if not _may_be_gone(arena, promise):
                    verdict.problems.append(f"{promise.kind} job {job_id} is gone")
                continue
            figures[f"  {record['s']}"] += 1
            if record.get("r") == "poison" and promise.kind != "poison":
                figures["innocent jobs that lost three processes"] += 1
            if problem := _problem(job_id, promise, record, events, spared=_may_be_half(arena, promise)):
                verdict.problems.append(f"{queue.name}: {promise.kind} job {job_id} {problem}")
            needed = int(record.get("f", 0)) + (record["s"] in ("done", "failed"))
            figures[REPEATED] += max(0, calls[job_id] - max(1, needed)) if calls[job_id] else 0
            figures[WASTED] += _wasted_words(events)
    for name, n in sorted(figures.items()):
        verdict.figures[name] = verdict.figures.get(name, 0) + n


def _problem(
    job_id: str,
    promise: Promise,
    record: Mapping[str, str],
    events: Sequence[dict[str, Any]],
    *,
    spared: bool,
) -> str | None:
    """What is wrong with a job that there is. `spared`: Redis may have lost a part of it."""
    state, reason = record["s"], record.get("r")
    if state not in ENDED:
        return f"is {state}"
    if spared:
        return None
    if promise.kind == "poison":
        fits = reason == "poison"
    else:
        # Chance may take three worker processes away from an innocent job.
        lost_three = reason == "poison" and int(record.get("o", 0)) >= LOSSES_OF_POISON
        fits = lost_three or state in KINDS[promise.kind].ends
    if not fits:
        return f"is {state}: {reason or record.get('i')}"
    terminal = [event["type"] for event in events if event["type"] in ENDED]
    if terminal != [state]:
        return f"is {state}; its stream says {terminal}"
    wrong = sorted({how for how in promise.heard if how != state})
    return f"is {state}; readers heard {wrong}" if wrong else None


def _calls(arena: Arena) -> Counter[str]:
    text = arena.calls.read_text(encoding="utf-8") if arena.calls.exists() else ""
    return Counter(line.split()[0] for line in text.splitlines())


def _wasted_words(events: Sequence[dict[str, Any]]) -> int:
    """Words that were streamed by attempts that did not come to an end."""
    words: dict[int, int] = defaultdict(int)
    for event in events:
        if event["type"] == "delta":
            words[event["attempt"]] += len(event.get("text", "").split())
    last = events[-1]["attempt"] if events else 0
    return sum(n for attempt, n in words.items() if attempt != last)


async def _read(
    queue: PromptQueue, job_ids: Sequence[str]
) -> list[tuple[dict[str, str], list[dict[str, Any]]]]:
    async with queue.redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(queue.keys.of("record", job_id))
        records = await pipe.execute()
    return [
        (
            {name.decode(): value.decode() for name, value in record.items()},
            await _events(queue, job_id),
        )
        for job_id, record in zip(job_ids, records, strict=True)
    ]


async def _events(queue: PromptQueue, job_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    after = START
    while replay := await queue.replay(job_id, after):
        events += map(orjson.loads, replay.events)
        if not replay.more:
            break
        token, _, seq = events[-1]["id"].partition("-")
        after = (int(token), int(seq))
    return events


async def _judge_leftovers(queue: PromptQueue, verdict: Verdict) -> None:
    report = await admin.audit(queue)
    verdict.figures["keys looked at"] = verdict.figures.get("keys looked at", 0) + report.keys
    verdict.problems += [f"audit: {one.kind} {one.where}" for one in report.problems]
    for name in ("leases", "delayed", "deadlines"):
        if left := await queue.redis.zcard(queue.keys.fixed(name)):
            verdict.problems.append(f"{left} left in {name}")
    waiting = int(await queue.redis.hget(queue.keys.fixed("meta"), "n") or 0)  # type: ignore[misc]  # redis-py has one type for sync and async
    if waiting:
        verdict.problems.append(f"{waiting} jobs wait")
    live = len([key async for key in queue.redis.scan_iter(match=f"{queue.keys.prefix}c:*")])
    if live:
        verdict.figures["claims remembered"] = live


def _judge_logs(arena: Arena, verdict: Verdict) -> None:
    for path in arena.logs:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if any(word in line for word in UNWELCOME):
                verdict.problems.append(f"{path.name}: {line.strip()[:200]}")


def _pages(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while page := list(islice(iterator, PAGE)):
        yield page
