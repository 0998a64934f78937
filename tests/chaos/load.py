"""A client process under chaos: it enqueues jobs of all kinds, reads what becomes of them, keeps a ledger.

    python -m tests.chaos.load URL LEDGER SEED JOBS_PER_S POISON_EVERY_S

SIGTERM: no more jobs; it ends once all of its own have ended.

The ledger has a JSON line for each thing that it was told, written at once: `acked` for a job that it was
promised, `ended` for a terminal event or result, `odd` for what must not be.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
import uuid
from base64 import b64decode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler import (
    AsyncClient,
    Delta,
    Done,
    EmbeddingRequest,
    Embeddings,
    InvalidTransition,
    Job,
    JobEnded,
    JobNotFound,
    JobRequest,
    JobResult,
    PromptRequest,
    Ranking,
    RedisError,
    RerankRequest,
    SchedulerError,
)
from scheduler.model import DedupMode
from scheduler.payload import parse_request
from tests.chaos.stage import POISON
from workers.echo_kinds import vector_of

TICK_S = 0.1
READ_AGAIN_S = 0.3
PATIENCE_S = 150.0
NO_END = "its reader has heard of no end"
WORDS = ("plum", "stone", "river", "lamp", "violin", "north", "paper", "salt")

Making = Callable[[random.Random, int], dict[str, Any]]
Asking = Callable[[Job, random.Random], Awaitable[None]]
"""Something that a client asks of a job while it is on its way."""

LARGE_CHARS = 200_000
FUNCTION = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}


def words(rng: random.Random, n: int) -> str:
    """A prompt of so many words."""
    return " ".join(rng.choices(WORDS, k=n))


async def cancel(job: Job, rng: random.Random) -> None:
    """Give the ticket back after a while."""
    await asyncio.sleep(rng.uniform(0, 0.5))
    await job.cancel()


async def move(job: Job, rng: random.Random) -> None:
    """Change the priority."""
    await asyncio.sleep(rng.uniform(0, 0.5))
    with suppress(InvalidTransition):
        await job.set_priority(rng.randrange(10))


async def hasten(job: Job, rng: random.Random) -> None:
    """Let a delayed job be due at another time, or now."""
    with suppress(InvalidTransition):
        await job.reschedule(rng.choice([0, 0.5, 2]))


def called(request: PromptRequest, result: JobResult) -> bool:
    """Whether the answer is the tool call that was asked for, whole."""
    said = [(call["function"]["name"], call["function"]["arguments"]) for call in result.tool_calls]
    return said == [("note", json.dumps({"text": request.messages[0].content if request.messages else ""}))]


def echoed(request: PromptRequest, result: JobResult) -> bool:
    """Whether the answer is what was said."""
    return result.text == (request.prompt or (request.messages[0].content if request.messages else None))


def embedded(request: EmbeddingRequest, result: JobResult) -> bool:
    """Whether each text has the vector that is its own."""
    assert isinstance(result, Embeddings)
    return [b64decode(one) for one in result.embeddings] == [vector_of(str(text)) for text in request.input]


def ranked(request: RerankRequest, result: JobResult) -> bool:
    """Whether the document that repeats the query comes first."""
    assert isinstance(result, Ranking)
    return request.documents[result.results[0].index] == request.query


def anything(request: PromptRequest, result: JobResult) -> bool:
    """Whatever the engine says."""
    return True


@dataclass(frozen=True)
class Kind:
    """What is asked for, how often, in what it may end, and what a good answer is."""

    share: float
    ends: tuple[str, ...]
    make: Making
    ask: Asking | None = None
    good: Callable[[Any, JobResult], bool] = echoed


def _prompt(n_words: int, **fields: Any) -> Making:
    return lambda rng, n: {"prompt": f"{words(rng, n_words)} {n}", **fields}


KINDS: dict[str, Kind] = {
    "plain": Kind(0.39, ("done",), _prompt(6)),
    "stream": Kind(0.03, ("done",), _prompt(60)),
    "chat": Kind(
        0.05,
        ("done",),
        lambda rng, n: {"messages": [{"role": "user", "content": f"{words(rng, 4)} {n}"}]},
    ),
    "dedup": Kind(
        0.08, ("done",), lambda rng, n: {"prompt": f"same {n // 40}", "dedup_key": f"until {n // 40}"}
    ),
    "window": Kind(
        0.04,
        ("done",),
        lambda rng, n: {
            "prompt": f"same {n // 80}",
            "dedup_key": f"window {n // 80}",
            "dedup": DedupMode.WINDOW,
        },
    ),
    "replace": Kind(
        0.03,
        ("done", "cancelled"),
        lambda rng, n: {
            "prompt": f"newest {n}",
            "dedup_key": f"newest {n // 40}",
            "dedup": DedupMode.REPLACE,
        },
    ),
    "delayed": Kind(
        0.04, ("done",), lambda rng, n: {"prompt": f"later {n}", "delay_s": round(rng.uniform(0.1, 3), 2)}
    ),
    "hastened": Kind(0.01, ("done",), _prompt(3, delay_s=3.0), ask=hasten),
    "deadline": Kind(
        0.05,
        ("done", "expired"),
        lambda rng, n: {"prompt": f"{words(rng, 5)} {n}", "deadline_s": rng.choice([0.05, 0.5, 3, 30])},
    ),
    "cancelled": Kind(0.04, ("done", "cancelled"), _prompt(20), ask=cancel),
    "moved": Kind(0.03, ("done",), _prompt(6), ask=move),
    "refused": Kind(0.02, ("failed",), lambda rng, n: {"prompt": f"REFUSE {n}"}),
    "flaky": Kind(0.05, ("done", "failed"), _prompt(3, model="flaky")),
    "session": Kind(
        0.02,
        ("done",),
        lambda rng, n: {"prompt": f"{words(rng, 3)} {n}", "model": "pair", "session": f"session {n % 20}"},
    ),
    "tenant": Kind(
        0.02, ("done",), lambda rng, n: {"prompt": f"{words(rng, 3)} {n}", "tenant": f"tenant{n % 50}"}
    ),
    "limited": Kind(0.01, ("done",), _prompt(3, tenant="limited")),
    "metered": Kind(0.01, ("done",), _prompt(3, model="metered")),
    "large": Kind(
        0.002,
        ("done",),
        lambda rng, n: {"prompt": rng.choice("abc") * LARGE_CHARS + f" {n}", "model": "pair"},
    ),
    "embedding": Kind(
        0.05,
        ("done", "failed"),
        lambda rng, n: {"kind": "embedding", "input": [f"{words(rng, 4)} {n}", f"{n}"], "model": "vectors"},
        good=embedded,
    ),
    "rerank": Kind(
        0.02,
        ("done", "failed"),
        lambda rng, n: {
            "kind": "rerank",
            "query": f"violin {n}",
            "documents": [words(rng, 3), f"violin {n}"],
            "model": "ranks",
        },
        good=ranked,
    ),
    "http": Kind(0.03, ("done", "failed"), _prompt(3, model="http"), good=anything),
    "tools": Kind(
        0.01,
        ("done", "failed"),
        lambda rng, n: {
            "messages": [{"role": "user", "content": f"{words(rng, 3)} {n}"}],
            "tools": [FUNCTION],
            "model": "http",
        },
        good=called,
    ),
}
POISONOUS = Kind(0.0, ("failed",), lambda rng, n: {"prompt": f"{POISON} {n}"})


class Ledger:
    """Lines of JSON, each written at once: what a killed process has seen is not lost."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, what: str, **fields: Any) -> None:
        self._file.write(json.dumps({"what": what, **fields}) + "\n")


class Load:
    """One client process."""

    def __init__(self, client: AsyncClient, ledger: Ledger, rng: random.Random) -> None:
        self._client = client
        self._ledger = ledger
        self._rng = rng
        self._reading: set[asyncio.Task[None]] = set()
        self._enqueued = 0
        self._run = rng.getrandbits(32)

    async def run(self, jobs_per_s: float, poison_every_s: float, stop: asyncio.Event) -> None:
        """Enqueue evenly until told to stop, then wait for what is still open."""
        began = time.monotonic()
        poison_at = began + poison_every_s / 2
        while not stop.is_set():
            due = int(jobs_per_s * (time.monotonic() - began)) - self._enqueued
            names = self._rng.choices(list(KINDS), [kind.share for kind in KINDS.values()], k=max(0, due))
            await self._enqueue([(name, KINDS[name]) for name in names])
            if time.monotonic() > poison_at:
                poison_at += poison_every_s
                await self._enqueue([("poison", POISONOUS)])
            await asyncio.sleep(TICK_S)
        if self._reading:
            await asyncio.wait(self._reading, timeout=PATIENCE_S)
        for task in self._reading:
            self._ledger.write("odd", id=task.get_name(), said=NO_END)

    async def _enqueue(self, kinds: list[tuple[str, Kind]]) -> None:
        """Send all, again and again until they are in: with ids of our own that is safe."""
        requests = []
        for name, kind in kinds:
            self._enqueued += 1
            fields: dict[str, Any] = {"model": "echo", "priority": self._rng.randrange(10)}
            fields |= kind.make(self._rng, self._enqueued)
            for shared in ("dedup_key", "session"):
                if shared in fields:
                    fields[shared] += f" {self._run}"
            fields["job_id"] = str(uuid.UUID(int=self._rng.getrandbits(128)))
            requests.append(parse_request(fields))
            self._ledger.write("sent", id=requests[-1].job_id, kind=name)
        while requests:
            try:
                outcomes = await self._client.enqueue_many(requests)
                break
            except RedisError:
                await asyncio.sleep(READ_AGAIN_S)
        else:
            return
        for (name, kind), request, outcome in zip(kinds, requests, outcomes, strict=True):
            if isinstance(outcome, SchedulerError):
                self._ledger.write("odd", id=request.job_id, kind=name, said=repr(outcome))
                continue
            self._ledger.write("acked", id=outcome.id, sent=request.job_id, kind=name, at=time.time())
            task = asyncio.create_task(self._follow(name, kind, request, outcome), name=outcome.id)
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _follow(self, name: str, kind: Kind, request: JobRequest, job: Job) -> None:
        if kind.ask is not None:
            await self._until_asked(kind.ask, job)
        reads_events = self._rng.random() < 0.3
        while True:
            try:
                how, result, streamed = await (_read_events(job) if reads_events else _read_result(job))
                break
            except JobNotFound:
                how, result, streamed = "gone", None, None
                break
            except RedisError:
                # Readers go on by themselves; a short read at the wrong moment may say that Redis is away.
                await asyncio.sleep(READ_AGAIN_S)
        self._ledger.write("ended", id=job.id, kind=name, how=how)
        if result is not None and not kind.good(request, result):
            self._ledger.write(
                "odd", id=job.id, kind=name, said=f"asked {_short(request)}, got {_short(result)}"
            )
        if result is not None and streamed and streamed != result.text:
            said = f"streamed {streamed[:80]!r}, got {_short(result)}"
            self._ledger.write("odd", id=job.id, kind=name, said=said)

    async def _until_asked(self, ask: Asking, job: Job) -> None:
        while True:
            try:
                await ask(job, self._rng)
                return
            except JobNotFound:
                return
            except RedisError:
                await asyncio.sleep(READ_AGAIN_S)


def _short(value: object) -> str:
    return repr(value)[:200]


async def _read_events(job: Job) -> tuple[str, JobResult | None, str | None]:
    """The terminal event's type, its result, and the text that the deltas of the last attempt make."""
    texts: list[str] = []
    attempt = 0
    last = None
    async for event in job.events():
        last = event
        if isinstance(event, Delta):
            if event.attempt != attempt:
                attempt, texts = event.attempt, []
            texts.append(event.text)
    assert last is not None
    if not isinstance(last, Done):
        return last.type, None, None
    return "done", last.result, None if last.result.reused else "".join(texts)


async def _read_result(job: Job) -> tuple[str, JobResult | None, None]:
    try:
        return "done", await job.result(), None
    except JobEnded as ended:
        return ended.state, None, None


async def main() -> None:
    """Run until SIGTERM, and until all jobs have ended."""
    url, ledger, seed, jobs_per_s, poison_every_s = sys.argv[1:]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = AsyncClient(url)
    while True:
        try:
            await client.connect()
            break
        except RedisError:
            await asyncio.sleep(READ_AGAIN_S)
    async with client:
        load = Load(client, Ledger(Path(ledger)), random.Random(seed))
        await load.run(float(jobs_per_s), float(poison_every_s), stop)


if __name__ == "__main__":
    asyncio.run(main())
