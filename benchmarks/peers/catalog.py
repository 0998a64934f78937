"""The peers: which there are, how each is started, and where each shows what it has done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.peers.environments import node_environment, python_environment
from benchmarks.peers.peer import FOLDER, Peer

OF_CELERY = (
    "celery",
    "unacked",
    "unacked_index",
    "unacked_mutex",
    "_kombu.binding.celery",
    "_kombu.binding_permanent.celery",
    "_kombu.binding_deadlines",
)


async def total_less(size: str, key: str, redis: Redis, total: int) -> int:
    """For a queue that keeps its jobs at `key` until their results are stored: `size` says how many."""
    return total - int(await redis.execute_command(size, key))  # redis-py


async def results(own: tuple[str, ...], redis: Redis, total: int) -> int:
    """For a queue with a key for each result: all keys but the queue's own."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.dbsize()
        pipe.exists(*own)
        keys, of_queue = await pipe.execute()
    return int(keys - of_queue)


async def completed(redis: Redis, total: int) -> int:
    """BullMQ keeps a sorted set of jobs that are completed."""
    return int(await redis.zcard("bull:bench:completed"))


def python_peer(
    name: str,
    *worker: str,
    jobs: int,
    settings: str,
    done: Callable[[Redis, int], Awaitable[int]],
    script: str = "python",
    folder: str = "",
    **variables: str,
) -> Peer:
    """A peer whose worker is `script` of its virtual environment with these arguments.

    Its folder has its name unless another is given; `variables` are environment variables.
    """
    place = FOLDER / (folder or name)
    python = python_environment(place)
    command = (str(python.with_name(script)), *worker)
    producer = (str(python), "-m", "producer")
    return Peer(name, place, jobs, settings, command, producer, None, done, variables)


def arq() -> Peer:
    """arq polls; its line for each job is off."""
    return python_peer(
        "arq",
        *("-m", "arq", "worker.WorkerSettings", "--custom-log-dict", "worker.LOGGING"),
        jobs=8_000,
        settings="arq 0.28.0, uvloop: max_jobs 100, poll_delay 1 ms, log level WARNING",
        done=partial(total_less, "ZCARD", "arq:queue"),
    )


def saq() -> Peer:
    """SAQ blocks on a list."""
    return python_peer(
        "saq",
        *("-m", "saq", "worker.settings", "--quiet"),
        jobs=10_000,
        settings="SAQ 0.26.4, uvloop, orjson: concurrency 100",
        done=partial(total_less, "ZCARD", "saq:default:incomplete"),
    )


def taskiq(kind: str) -> Peer:
    """taskiq on its list or its stream broker."""
    return python_peer(
        f"taskiq-{kind}",
        *("-m", "taskiq", "worker", "worker:broker", "--workers", "1", "--max-async-tasks", "100"),
        *("--no-parse", "--log-level", "WARNING"),
        jobs=8_000,
        settings=f"taskiq 0.13.0, taskiq-redis 1.2.4, {kind} broker, uvloop, orjson: one worker, "
        "max-async-tasks 100, no-parse, log level WARNING",
        done=partial(results, ("taskiq",)),
        folder="taskiq",
        TASKIQ_BROKER=kind,
    )


def streaq() -> Peer:
    """streaQ reads a stream."""
    return python_peer(
        "streaq",
        *("-m", "streaq", "run", "worker:worker"),
        jobs=6_000,
        settings="streaQ 7.2.0, uvloop, orjson: concurrency 100, silent tasks",
        done=partial(total_less, "XLEN", "streaq:default:queues:normal"),
    )


def dramatiq() -> Peer:
    """Dramatiq with greenlets in place of threads."""
    return python_peer(
        "dramatiq",
        *("worker", "--processes", "1", "--threads", "16"),
        script="dramatiq-gevent",
        jobs=10_000,
        settings="Dramatiq 2.2.1, gevent: one process, 16 threads",
        done=partial(total_less, "HLEN", "dramatiq:default.msgs"),
    )


def celery() -> Peer:
    """Celery without what a single worker has no use for."""
    return python_peer(
        "celery",
        *("-m", "celery", "-A", "worker", "worker", "--pool", "solo", "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        jobs=4_000,
        settings="Celery 5.7.0: pool solo",
        done=partial(results, OF_CELERY),
    )


def bullmq() -> Peer:
    """BullMQ, on Node."""
    folder = FOLDER / "bullmq"
    node_modules: Path = node_environment(folder)
    return Peer(
        "bullmq",
        folder,
        30_000,
        "BullMQ 6.7.0 on Node: one worker, concurrency 100",
        ("node", "worker.js"),
        ("node", "producer.js"),
        node_modules,
        completed,
    )


QUICK: dict[str, Callable[[], Peer]] = {"arq": arq, "saq": saq, "bullmq": bullmq}

ALL: dict[str, Callable[[], Peer]] = {
    "arq": arq,
    "saq": saq,
    "taskiq-list": partial(taskiq, "list"),
    "taskiq-stream": partial(taskiq, "stream"),
    "streaq": streaq,
    "dramatiq": dramatiq,
    "celery": celery,
    "bullmq": bullmq,
}
