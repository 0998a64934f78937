"""Compares what clients were promised with what they saw, with Redis, and with the calls of engines."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
import redis.asyncio

from scheduler import admin
from scheduler.model import JobState
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import START
from tests.chaos.arena import Arena, SentinelSet
from tests.chaos.load import KINDS

REPEATED = "engine calls made again after a loss"
WASTED = "tokens streamed for nothing"
PAGE = 500
PROBLEMS_SHOWN = 20
LOST_BY_A_FAILOVER_S = 2.0
LOSSES_OF_POISON = 3
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
    promises = _promises(arena, verdict)
    async with redis.asyncio.Redis.from_url(arena.server.direct_url) as client:
        queue = PromptQueue(client, "default")
        await queue.load()
        meta = await client.hgetall(queue.keys.fixed("meta"))
        totals = {key[2:].decode(): int(n) for key, n in meta.items() if key.startswith(b"t:")}
        verdict.figures |= {"jobs promised": len(promises), "jobs enqueued": totals.get("enqueued", 0)}
        await _judge_jobs(arena, queue, promises, verdict)
        await _judge_leftovers(queue, verdict)
    _judge_logs(arena, verdict)
    verdict.figures |= {
        "leases lost": totals.get("lost", 0),
        "quarantined": totals.get("quarantined", 0),
        "worker processes killed": arena.kills,
        "worker processes that died of poison": arena.deaths,
    }
    dead = arena.kills + arena.deaths
    for name in (REPEATED, WASTED):
        verdict.figures[f"  a dead process, {name}"] = f"{verdict.figures[name] / max(1, dead):.1f}"
    verdict.figures["repeated, as the queue counted"] = totals.get("repeated", 0)
    verdict.figures["tokens wasted, as the queue estimated"] = totals.get("wasted_tokens", 0)
    return verdict


def _promises(arena: Arena, verdict: Verdict) -> dict[str, Promise]:
    promises: dict[str, Promise] = {}
    for line in _ledger_lines(arena):
        match line["what"]:
            case "acked":
                promises.setdefault(line["id"], Promise(line["kind"], line["at"]))
            case "ended":
                promises[line["id"]].heard.append(line["how"])
            case "odd":
                verdict.problems.append(f"{line.get('kind')} job {line['id']}: {line['said']}")
    return promises


def _ledger_lines(arena: Arena) -> Iterator[dict[str, Any]]:
    for path in arena.ledgers:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # the process was killed in the middle of it


async def _judge_jobs(
    arena: Arena, queue: PromptQueue, promises: dict[str, Promise], verdict: Verdict
) -> None:
    calls = _calls(arena)
    states: Counter[str] = Counter()
    twice = wasted = gone = innocent = 0
    for page in _pages(promises.items()):
        for (job_id, promise), (record, events) in zip(
            page, await _read(queue, [job_id for job_id, _ in page]), strict=True
        ):
            if not record:
                gone += 1
                if not isinstance(arena.server, SentinelSet):
                    verdict.problems.append(f"{promise.kind} job {job_id} is gone")
                continue
            state, losses = record["s"], int(record.get("o", 0))
            states[state] += 1
            poisoned = record.get("r") == "poison"
            if promise.kind == "poison":
                fits = poisoned
            else:
                # Chance may take three worker processes away from an innocent job.
                innocent += poisoned
                fits = state in KINDS[promise.kind].ends or (poisoned and losses >= LOSSES_OF_POISON)
            if not fits:
                verdict.problems.append(
                    f"{promise.kind} job {job_id} is {state}: {record.get('r') or record.get('i')}"
                )
            terminal = [event["type"] for event in events if event["type"] in ENDED]
            if terminal != [state]:
                verdict.problems.append(f"{promise.kind} job {job_id} is {state}; its stream says {terminal}")
            _judge_readers(arena, job_id, promise, state, verdict)
            needed = int(record.get("f", 0)) + (state in ("done", "failed"))
            twice += max(0, calls[job_id] - max(1, needed)) if calls[job_id] else 0
            wasted += _wasted_words(events)
    verdict.figures |= {f"  {state}": n for state, n in sorted(states.items())}
    verdict.figures[REPEATED] = twice
    verdict.figures[WASTED] = wasted
    if innocent:
        verdict.figures["innocent jobs that lost three processes"] = innocent
    if gone:
        verdict.figures["gone with a primary's last writes"] = gone


def _judge_readers(arena: Arena, job_id: str, promise: Promise, state: str, verdict: Verdict) -> None:
    wrong = sorted({how for how in promise.heard if how != state})
    # What a primary said in its last moments its replica may not have heard.
    if wrong and not isinstance(arena.server, SentinelSet):
        verdict.problems.append(f"{promise.kind} job {job_id} is {state}; readers heard {wrong}")


def _calls(arena: Arena) -> Counter[str]:
    text = arena.calls.read_text(encoding="utf-8") if arena.calls.exists() else ""
    return Counter(line.split()[0] for line in text.splitlines())


def _wasted_words(events: Sequence[dict[str, Any]]) -> int:
    """Words that were streamed by attempts that did not come to an end."""
    words: dict[int, int] = defaultdict(int)
    for event in events:
        if event["type"] == "delta":
            words[event["attempt"]] += len(event["text"].split())
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
    verdict.figures["keys looked at"] = report.keys
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
