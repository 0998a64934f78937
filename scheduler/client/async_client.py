"""The client: puts prompts into the queue and reads what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

from redis.asyncio import Redis

from scheduler.client.job import Job
from scheduler.client.submission import new_job
from scheduler.connection import check_server, open_redis, translated
from scheduler.embedded import EmbeddedServer
from scheduler.errors import DedupConflict, InvalidRequest, QueueFull, SchedulerError, UnknownModel
from scheduler.model import DedupMode, GenerationParams, JobResult, Message, PromptRequest
from scheduler.queue.queue import ENQUEUE_CHUNK, PromptQueue
from scheduler.queue.records import Conflict, EnqueueOutcome, Full, NewJob
from scheduler.results.subscriptions import Subscriptions
from scheduler.settings import EMBEDDED, Settings, load_settings

ROUTES_FRESH_S = 5.0


class RequestFields(TypedDict, total=False):
    """The fields of `PromptRequest` as keyword arguments."""

    messages: Sequence[Message | dict[str, Any]]
    model: str
    priority: int
    dedup_key: str
    dedup: DedupMode | Literal["until_finished", "window", "replace"]
    tenant: str
    session: str
    deadline_s: float | timedelta
    delay_s: float | timedelta
    max_attempts: int
    result_ttl_s: float | timedelta
    tools: Sequence[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    response_format: dict[str, Any]
    params: GenerationParams | dict[str, Any]
    stream: bool
    extra_body: dict[str, Any]
    metadata: dict[str, Any]
    job_id: str


class AsyncClient:
    """Enqueues prompts and reads their events and results. One connection serves all subscriptions.

    `redis_url` overrides that of the settings; "embedded" starts a private server that ends with the client.
    Use it as an async context manager.
    """

    def __init__(
        self, redis_url: str | None = None, *, settings: Settings | None = None, redis: Redis | None = None
    ) -> None:
        if settings is None:
            settings = load_settings(redis_url=redis_url) if redis_url else load_settings()
        elif redis_url is not None:
            settings = settings.model_copy(update={"redis_url": redis_url})
        self.settings = settings
        self._given = redis
        self._server: EmbeddedServer | None = None
        self._queue: PromptQueue | None = None
        self._subscriptions: Subscriptions | None = None
        self._routes: dict[str, dict[str, Any]] = {}
        self._routes_read_at = -ROUTES_FRESH_S

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def queue(self) -> PromptQueue:
        """The queue underneath, for tools that look deeper."""
        if self._queue is None:
            raise SchedulerError(
                "the client is not connected: use `async with AsyncClient(…)`, or await connect()"
            )
        return self._queue

    @property
    def redis_url(self) -> str:
        """The URL of the server in use, that of the private one where there is one."""
        return self._server.url if self._server else self.settings.redis_url

    async def connect(self) -> None:
        """Connect, and make sure that a usable server answers. Safe to call twice.

        Raises:
            RedisUnavailable, RedisAuthError, RedisTooOld: with what to do about it.
        """
        if self._queue is not None:
            return
        if self._given is not None:
            self._attach(self._given, script_flags=False)
            return
        if self.settings.redis_url == EMBEDDED:
            self._server = EmbeddedServer(self.settings.data_dir)
            await asyncio.to_thread(self._server.start)
        redis = open_redis(self.redis_url)
        try:
            await check_server(redis, self.redis_url)
        except BaseException:
            await redis.aclose()
            await self._stop_server()
            raise
        self._attach(redis, script_flags=True)

    def _attach(self, redis: Redis, *, script_flags: bool) -> None:
        self._queue = PromptQueue(redis, self.settings.queue, script_flags=script_flags)
        self._subscriptions = Subscriptions(redis)

    async def aclose(self) -> None:
        """Close the connections. Jobs go on. Safe to call twice."""
        queue, self._queue = self._queue, None
        subscriptions, self._subscriptions = self._subscriptions, None
        if subscriptions is not None:
            await subscriptions.aclose()
        if queue is not None and self._given is None:
            await queue.redis.aclose()
        await self._stop_server()

    async def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise redis-py's errors as those of this package."""
        with translated(self.redis_url):
            yield

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Subscriptions]:
        """The client's subscriptions, with redis-py's errors raised as those of this package."""
        if self._subscriptions is None:
            raise SchedulerError(
                "the client is not connected: use `async with AsyncClient(…)`, or await connect()"
            )
        with self.translated():
            yield self._subscriptions

    async def enqueue(
        self, prompt: str | PromptRequest | None = None, /, **fields: Unpack[RequestFields]
    ) -> Job:
        """Put one prompt into the queue; `fields` are those of `PromptRequest`.

        Raises:
            InvalidRequest: a field is wrong; UnknownModel: no route of that name.
            DedupConflict: the dedup key is in use for other content.
            QueueFull: no room, and none came in time where the queue says to wait for it.
            RedisUnavailable, RedisOutOfMemory: nothing was enqueued, as far as can be known; to try again
                safely give a `job_id`.
        """
        if isinstance(prompt, PromptRequest):
            if fields:
                raise InvalidRequest("give a PromptRequest or fields, not both")
            request = prompt
        else:
            request = PromptRequest.parse(**({} if prompt is None else {"prompt": prompt}), **fields)
        outcome = (await self.enqueue_many([request]))[0]
        if isinstance(outcome, SchedulerError):
            raise outcome
        return outcome

    async def enqueue_many(self, requests: Sequence[PromptRequest]) -> list[Job | SchedulerError]:
        """Put many prompts into the queue; one outcome each, in order: its job, or why there is none.

        Raises:
            RedisUnavailable, RedisOutOfMemory: Redis did not take them all. Those before the failure are in;
                give each request a `job_id` to send all again safely.
        """
        outcomes: list[Job | SchedulerError] = []
        for start in range(0, len(requests), ENQUEUE_CHUNK):
            outcomes += await self._enqueue_chunk(requests[start : start + ENQUEUE_CHUNK])
        return outcomes

    async def _enqueue_chunk(self, requests: Sequence[PromptRequest]) -> list[Job | SchedulerError]:
        outcomes: dict[int, Job | SchedulerError] = {}
        jobs: dict[int, NewJob] = {}
        for at, request in enumerate(requests):
            try:
                jobs[at] = await self._new_job(request)
            except InvalidRequest as error:
                outcomes[at] = error
        give_up_at = time.monotonic() + self.settings.block_timeout_s
        while jobs:
            with self.translated():
                replies = await self.queue.enqueue(list(jobs.values()))
            full: dict[int, NewJob] = {}
            for (at, job), reply in zip(jobs.items(), replies, strict=True):
                outcomes[at] = self._outcome(job, reply)
                if isinstance(reply, Full) and reply.when_full == "block" and time.monotonic() < give_up_at:
                    full[at] = job
            jobs = full
            if jobs:
                with self.translated():
                    await self.queue.wait_for_space(max(0.01, min(1.0, give_up_at - time.monotonic())))
        return [outcomes[at] for at in range(len(requests))]

    async def _new_job(self, request: PromptRequest) -> NewJob:
        revision, uses_metadata = await self._route(request.model)
        return new_job(request, revision=revision, uses_metadata=uses_metadata)

    def _outcome(self, job: NewJob, reply: EnqueueOutcome) -> Job | SchedulerError:
        if isinstance(reply, Conflict):
            return DedupConflict(
                f"dedup_key: it names job {reply.job_id}, whose content is another; "
                "use a key of its own, dedup='replace', or dedup_key='auto'",
                job_id=reply.job_id,
            )
        if isinstance(reply, Full):
            where = f"lane {reply.lane!r}" if reply.lane else "the queue"
            retry_after_s = reply.retry_after_ms / 1000
            return QueueFull(
                f"{where} is full: {reply.waiting:,} jobs of at most {reply.max_waiting:,} wait; "
                f"try again after {retry_after_s:g} s",
                retry_after_s=retry_after_s,
            )
        return Job(
            self, reply.job_id, ticket=job.job_id, deduplicated=reply.deduplicated, reused=reply.reused
        )

    async def _route(self, model: str) -> tuple[str, bool]:
        """Revision of a route and whether it uses metadata, from the worker processes or our own settings."""
        if model not in self._routes and model in self.settings.routes and self._is_fresh():
            return self.settings.routes[model].revision, self.settings.routes[model].uses_metadata
        if not self._is_fresh() or model not in self._routes:
            with self.translated():
                self._routes = await self.queue.routes()
            self._routes_read_at = time.monotonic()
        if model in self._routes:
            return self._routes[model].get("revision", ""), bool(self._routes[model].get("uses_metadata"))
        if model in self.settings.routes:
            return self.settings.routes[model].revision, self.settings.routes[model].uses_metadata
        known = ", ".join(sorted({*self._routes, *self.settings.routes}))
        raise UnknownModel(
            f"model: no route {model!r}; there are: {known}. Routes come from the settings and from running workers"
        )

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._routes_read_at < ROUTES_FRESH_S

    def job(self, job_id: str) -> Job:
        """Attach to a job by its id. The handle holds no ticket, so only `cancel(force=True)` ends it."""
        return Job(self, job_id)

    async def run(
        self,
        prompt: str | PromptRequest | None = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Unpack[RequestFields],
    ) -> JobResult:
        """Enqueue one prompt and wait for its result: `enqueue` and `Job.result` in one.

        Raises:
            What `enqueue` and `Job.result` raise.
        """
        job = await self.enqueue(prompt, **fields)
        return await job.result(timeout_s=timeout_s)
