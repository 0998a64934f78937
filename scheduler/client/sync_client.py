"""The client without async: the same calls, run on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from scheduler.client.async_client import AsyncClient
from scheduler.client.fields import JobFields, RequestFields
from scheduler.client.job import Job
from scheduler.errors import SchedulerError
from scheduler.events import Event, RawEvent
from scheduler.model import Embeddings, Input, JobInfo, JobRequest, JobResult, Ranking
from scheduler.settings import Settings

T = TypeVar("T")

ABANDON_S = 5.0
"""How long an interrupted caller waits for its work on the loop to end."""


class _LoopThread:
    """An event loop in a daemon thread. Other threads run coroutines on it and wait for their end."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="prompt-scheduler-client", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether coroutines can run: not after `stop`, and not in a process forked from this one."""
        return self._open and self._thread.is_alive()

    def _work(self) -> None:
        self._loop.run_forever()
        # Here, and not in stop(), whose caller may have a running loop of its own.
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = Future()
        with self._lock:
            if not self.open:
                coroutine.close()
                raise SchedulerError(
                    "the client is closed, or was connected before this process was forked: make a new one"
                )
            tasks: list[asyncio.Task[T]] = []
            self._loop.call_soon_threadsafe(self._begin, coroutine, future, tasks)
        try:
            return future.result()
        except CancelledError:
            raise SchedulerError("the client was closed before the call had ended") from None
        except BaseException:
            if not future.done():
                # Ctrl-C in the caller must end the work on the loop as well.
                self._abandon(future, tasks)
            raise

    def _begin(
        self, coroutine: Coroutine[Any, Any, T], future: Future[T], tasks: list[asyncio.Task[T]]
    ) -> None:
        task = self._loop.create_task(coroutine)
        tasks.append(task)
        task.add_done_callback(lambda _: _hand_over(task, future))

    def _abandon(self, future: Future[T], tasks: list[asyncio.Task[T]]) -> None:
        # _begin is ahead of this in the loop's queue.
        self._loop.call_soon_threadsafe(_cancel, tasks)
        with suppress(CancelledError, TimeoutError):
            future.exception(timeout=ABANDON_S)

    def stop(self) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


def _hand_over(task: asyncio.Task[T], future: Future[T]) -> None:
    if task.cancelled():
        future.cancel()
    elif error := task.exception():
        future.set_exception(error)
    else:
        future.set_result(task.result())


async def _next(events: AsyncGenerator[T, None]) -> T:
    return await anext(events)


class SyncJob:
    """A caller's handle on one job: `scheduler.Job` without async."""

    id: str
    """The job's id. For a duplicate it is the id of the job that it joined."""
    deduplicated: bool
    """Whether the request was a duplicate."""
    channel: str
    """The pub/sub channel with this job's events as JSON."""

    def __init__(self, job: Job, thread: _LoopThread) -> None:
        self._job = job
        self._thread = thread
        self.id = job.id
        self.deduplicated = job.deduplicated
        self.channel = job.channel

    def __repr__(self) -> str:
        return f"SyncJob({self.id!r}, deduplicated={self.deduplicated})"

    def events(self, *, after: str | None = None) -> Iterator[Event]:
        """See `Job.events`."""
        return self._follow(self._job.events(after=after))

    def events_json(self, *, after: str | None = None) -> Iterator[RawEvent]:
        """See `Job.events_json`."""
        return self._follow(self._job.events_json(after=after))

    def _follow(self, events: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while True:
                try:
                    yield self._thread.run(_next(events))
                except StopAsyncIteration:
                    return
        finally:
            if self._thread.open:
                self._thread.run(events.aclose())

    def result(self, *, timeout_s: float | None = None) -> JobResult:
        """See `Job.result`."""
        return self._thread.run(self._job.result(timeout_s=timeout_s))

    def info(self) -> JobInfo:
        """See `Job.info`."""
        return self._thread.run(self._job.info())

    def set_priority(self, priority: int) -> None:
        """See `Job.set_priority`."""
        self._thread.run(self._job.set_priority(priority))

    def reschedule(self, delay_s: float | timedelta) -> None:
        """See `Job.reschedule`."""
        self._thread.run(self._job.reschedule(delay_s))

    def delete(self) -> None:
        """See `Job.delete`."""
        self._thread.run(self._job.delete())

    def cancel(self, *, force: bool = False) -> bool:
        """See `Job.cancel`."""
        return self._thread.run(self._job.cancel(force=force))


class Client:
    """`AsyncClient` without async. Use it as a context manager. Threads may share it."""

    def __init__(self, redis_url: str | None = None, *, settings: Settings | None = None) -> None:
        self._host: AbstractAsyncContextManager[AsyncClient] = AsyncClient(redis_url, settings=settings)
        self._client: AsyncClient
        self._thread: _LoopThread | None = None
        self._connecting = threading.Lock()

    @classmethod
    def hosting(cls, host: AbstractAsyncContextManager[AsyncClient]) -> Client:
        """A client over a context manager that gives an `AsyncClient`. It is entered on the client's loop."""
        client = cls.__new__(cls)
        client._host = host
        client._thread = None
        client._connecting = threading.Lock()
        return client

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def redis_url(self) -> str:
        """The URL of the server in use, which may be a private one."""
        self._running  # noqa: B018  raises if it is not connected
        return self._client.redis_url

    def connect(self) -> None:
        """See `AsyncClient.connect`."""
        with self._connecting:
            if self._thread is not None:
                return
            thread = _LoopThread()
            try:
                self._client = thread.run(self._enter())
            except BaseException:
                thread.stop()
                raise
            self._thread = thread

    async def _enter(self) -> AsyncClient:
        return await self._host.__aenter__()

    async def _leave(self) -> None:
        await self._host.__aexit__(None, None, None)

    def close(self) -> None:
        """Close the connections. Jobs go on. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is None or not thread.open:
            return
        try:
            thread.run(self._leave())
        finally:
            thread.stop()

    def enqueue(
        self, prompt: str | list[int] | JobRequest | None = None, /, **fields: Unpack[RequestFields]
    ) -> SyncJob:
        """See `AsyncClient.enqueue`."""
        return SyncJob(self._running.run(self._client.enqueue(prompt, **fields)), self._running)

    def enqueue_many(self, requests: Iterable[JobRequest]) -> list[SyncJob | SchedulerError]:
        """See `AsyncClient.enqueue_many`."""
        outcomes = self._running.run(self._client.enqueue_many(requests))
        return [
            SyncJob(outcome, self._running) if isinstance(outcome, Job) else outcome for outcome in outcomes
        ]

    def job(self, job_id: str) -> SyncJob:
        """See `AsyncClient.job`."""
        thread = self._running
        return SyncJob(self._client.job(job_id), thread)

    def run(
        self,
        prompt: str | list[int] | JobRequest | None = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Unpack[RequestFields],
    ) -> JobResult:
        """See `AsyncClient.run`."""
        return self._running.run(self._client.run(prompt, timeout_s=timeout_s, **fields))

    def embed(
        self,
        input: Input,  # noqa: A002  the field's name everywhere
        *,
        dimensions: int | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Embeddings:
        """See `AsyncClient.embed`."""
        call = self._client.embed(input, dimensions=dimensions, timeout_s=timeout_s, **fields)
        return self._running.run(call)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Ranking:
        """See `AsyncClient.rerank`."""
        call = self._client.rerank(
            query,
            documents,
            top_n=top_n,
            return_documents=return_documents,
            timeout_s=timeout_s,
            **fields,
        )
        return self._running.run(call)

    @property
    def _running(self) -> _LoopThread:
        if self._thread is None:
            raise SchedulerError("the client is not connected: use `with Client(…)`, or call connect()")
        return self._thread
