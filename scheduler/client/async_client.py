"""The client: puts prompts into the queue and reads what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scheduler.client.job import Job, check_timeout
from scheduler.client.routes import KnownRoutes
from scheduler.client.submission import new_job
from scheduler.coalescer import Chunks, Coalescer
from scheduler.errors import DedupConflict, InvalidRequest, QueueFull, SchedulerError
from scheduler.model import DedupMode, GenerationParams, JobResult, Message, PromptRequest
from scheduler.queue.queue import ENQUEUE_CHUNK, FORMAT, PromptQueue
from scheduler.queue.records import Conflict, Cursor, EnqueueOutcome, Full, NewJob, Replay
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.errors import newer_data, too_late, translated
from scheduler.redis_server.readiness import check_server
from scheduler.results.ports import ReplayPort
from scheduler.results.replays import Replays
from scheduler.results.subscriptions import Subscriptions
from scheduler.settings import EMBEDDED, Settings, load_settings
from scheduler.telemetry.needed import needs

if TYPE_CHECKING:
    from scheduler.telemetry.client_traces import ClientTraces

# redis-py opens a connection for each command at work: a thousand callers are to share a few.
MAX_COMMANDS = 32
# Each wait for room in a full queue holds a connection as well; the others wait their turn.
MAX_SPACE_WAITS = 4
SPACE_LOOK_S = 1.0
BREATHE_EVERY = 16
"""Of so many jobs that are made in a row, the event loop has a turn before the next."""


class RequestFields(TypedDict, total=False):
    """The fields of `PromptRequest` as keyword arguments."""

    prompt: str
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
    max_waits: int
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
    Use it as an async context manager. It belongs to the event loop in which it was connected.
    """

    def __init__(
        self, redis_url: str | None = None, *, settings: Settings | None = None, redis: Redis | None = None
    ) -> None:
        if settings is None:
            settings = load_settings(redis_url=redis_url) if redis_url else load_settings()
        elif redis_url is not None:
            settings = settings.model_copy(update={"redis_url": SecretStr(redis_url)})
        self.settings = settings
        self._traces = _traces_of(settings) if settings.traces else None
        self._given = redis
        self._server: EmbeddedServer | None = None
        self._queue: PromptQueue | None = None
        self._subscriptions: Subscriptions | None = None
        self._replays: Replays | None = None
        self._enqueues: Coalescer[NewJob, EnqueueOutcome] | None = None
        self._routes = KnownRoutes(settings, self._read_routes)
        self._connecting = asyncio.Lock()
        # Made anew by each connect, for the event loop that it runs in.
        self._loop: asyncio.AbstractEventLoop
        self._commands: asyncio.Semaphore
        self._answered_at: float  # when a command was last answered, on the loop's clock
        self._space_waits: asyncio.Semaphore

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
            raise not_connected()
        return self._queue

    @property
    def redis_url(self) -> str:
        """The URL of the server in use, that of the private one where there is one."""
        return self._server.url if self._server else self.settings.redis_url.get_secret_value()

    async def connect(self) -> None:
        """Connect, and make sure that a usable server answers. Safe to call twice.

        Raises:
            RedisUnavailable, RedisAuthError, RedisTooOld, NewerData: with what to do about it.
        """
        async with self._connecting:
            if self._queue is not None:
                self._check_usable()
                return
            if self._given is not None:
                self._attach(self._given, script_flags=False)
                return
            try:
                await self._open()
            except BaseException:
                await self._stop_server()
                raise

    async def _open(self) -> None:
        if self.settings.redis_url.get_secret_value() == EMBEDDED:
            self._server = EmbeddedServer(self.settings.data_dir)
            await asyncio.to_thread(self._server.start)
        redis = open_redis(self.redis_url, timeout_s=self.settings.redis_timeout_s)
        try:
            await check_server(redis, self.redis_url)
            await self._check_format(redis)
        except BaseException:
            await redis.aclose()
            raise
        self._attach(redis, script_flags=True)

    async def _check_format(self, redis: Redis) -> None:
        stored = 0
        # Whoever lacks the right to ask hears of it with the first call.
        with translated(self.redis_url), suppress(ResponseError):
            stored = await PromptQueue(redis, self.settings.queue).format()
        if stored > FORMAT:
            raise newer_data(self.redis_url)

    def _attach(self, redis: Redis, *, script_flags: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._commands = asyncio.Semaphore(MAX_COMMANDS)
        self._answered_at = self._loop.time()
        self._space_waits = asyncio.Semaphore(MAX_SPACE_WAITS)
        queue = self._queue = PromptQueue(redis, self.settings.queue, script_flags=script_flags)
        self._subscriptions = Subscriptions(redis)
        self._replays = Replays(partial(self._replay_many, queue), queue.channel)
        self._enqueues = Coalescer(
            partial(self._enqueue_all, queue), chunk=ENQUEUE_CHUNK, size=lambda job: len(job.payload)
        )

    def _check_usable(self) -> None:
        if self._queue is None:
            raise not_connected()
        if self._loop is not asyncio.get_running_loop():
            raise SchedulerError(
                "the client was connected in another event loop: make one for each loop, "
                "or use Client, which threads may share"
            )

    async def aclose(self) -> None:
        """Close the connections; who still reads gets a `SchedulerError`. Jobs go on. Safe to call twice."""
        if self._queue is not None:
            self._check_usable()
        queue, self._queue = self._queue, None
        subscriptions, self._subscriptions = self._subscriptions, None
        self._replays = self._enqueues = None
        if subscriptions is not None:
            await subscriptions.aclose()
        if queue is not None and self._given is None:
            await queue.redis.aclose()
        await self._stop_server()

    async def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)

    @asynccontextmanager
    async def commands(self) -> AsyncIterator[PromptQueue]:
        """The queue, for a few callers at a time, with redis-py's errors raised as those of this package."""
        self._check_usable()
        with translated(self.redis_url):
            await self._take_turn()
            try:
                yield self.queue
                self._answered_at = self._loop.time()
            finally:
                self._commands.release()

    async def _take_turn(self) -> None:
        """Wait for one's turn: as long as others have answers, or for the limit of one command."""
        limit_s = self.settings.redis_timeout_s
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    await self._commands.acquire()
            except TimeoutError:
                if self._loop.time() - self._answered_at >= limit_s:
                    raise too_late(limit_s) from None
            else:
                return

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[tuple[ReplayPort, Subscriptions]]:
        """What reading events needs, with redis-py's errors raised as those of this package."""
        self._check_usable()
        replays, subscriptions = self._replays, self._subscriptions
        if replays is None or subscriptions is None:
            raise not_connected()
        with translated(self.redis_url):
            yield replays, subscriptions

    @asynccontextmanager
    async def _commands_of(self, queue: PromptQueue) -> AsyncIterator[None]:
        """Few at a time, and none once the client is closed."""
        async with self.commands() as current:
            if current is not queue:
                raise not_connected()
            yield

    async def _enqueue_all(self, queue: PromptQueue, jobs: Sequence[NewJob]) -> Sequence[EnqueueOutcome]:
        async with self._commands_of(queue):
            return await queue.enqueue(jobs)

    async def _replay_many(
        self, queue: PromptQueue, wanted: Sequence[tuple[str, Cursor]]
    ) -> Sequence[Replay | Exception | None]:
        async with self._commands_of(queue):
            return await queue.replay_many(wanted)

    async def enqueue(
        self, prompt: str | PromptRequest | None = None, /, **fields: Unpack[RequestFields]
    ) -> Job:
        """Put one prompt into the queue; `fields` are those of `PromptRequest`.

        Raises:
            InvalidRequest: a field is wrong, or no `model` is given and there are several routes.
            UnknownModel: no route of that name.
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
            if prompt is not None and "prompt" in fields:
                raise InvalidRequest("prompt: is given twice; leave out one of them", field="prompt")
            request = PromptRequest.parse(**({} if prompt is None else {"prompt": prompt}), **fields)
        if self._traces is None:
            return await self._enqueue_one(request)
        with self._traces.sending() as sending:
            job = await self._enqueue_one(request, sending.carrier)
            sending.sent(job.id, deduplicated=job.deduplicated, reused=job._reuse is not None)
            return job

    async def _enqueue_one(self, request: PromptRequest, trace: bytes = b"") -> Job:
        made = await self._new_job(request, trace)
        outcome = made if isinstance(made, SchedulerError) else (await self._enqueue_chunk({0: made}))[0]
        if isinstance(outcome, SchedulerError):
            raise outcome
        return outcome

    async def enqueue_many(self, requests: Iterable[PromptRequest]) -> list[Job | SchedulerError]:
        """Put many prompts into the queue; one outcome each, in order: its job, or why there is none.

        Raises:
            InvalidRequest: something among them is no `PromptRequest`; nothing was enqueued.
            RedisUnavailable, RedisOutOfMemory: Redis did not take them all. Those before the failure are in;
                give each request a `job_id` to send all again safely.
        """
        requests = list(requests)
        _refuse_others(requests)
        if self._traces is None:
            return await self._enqueue_list(requests)
        with self._traces.sending(len(requests)) as sending:
            outcomes = await self._enqueue_list(requests, sending.carrier)
            sending.sent_many(outcomes)
            return outcomes

    async def _enqueue_list(
        self, requests: list[PromptRequest], trace: bytes = b""
    ) -> list[Job | SchedulerError]:
        outcomes: dict[int, Job | SchedulerError] = {}
        on_its_way: asyncio.Task[dict[int, Job | SchedulerError]] | None = None
        try:
            async for chunk in self._chunks(requests, outcomes, trace):
                # Chunks go in order; while one is on its way the next is made.
                if on_its_way is not None:
                    outcomes |= await on_its_way
                on_its_way = asyncio.create_task(self._enqueue_chunk(chunk))
            if on_its_way is not None:
                outcomes |= await on_its_way
        finally:
            if on_its_way is not None and not on_its_way.done():
                on_its_way.cancel()
                await asyncio.wait([on_its_way])
        return [outcomes[at] for at in range(len(requests))]

    async def _chunks(
        self, requests: list[PromptRequest], outcomes: dict[int, Job | SchedulerError], trace: bytes
    ) -> AsyncIterator[dict[int, NewJob]]:
        """The jobs by their places, as many as share a call; what cannot be one goes into `outcomes`."""
        chunks: Chunks[tuple[int, NewJob]] = Chunks(ENQUEUE_CHUNK)
        for at, request in enumerate(requests):
            if at % BREATHE_EVERY == 0:
                await asyncio.sleep(0)  # so that the chunk before gets away, and others their turn
            made = await self._new_job(request, trace)
            if isinstance(made, InvalidRequest):
                outcomes[at] = made
            elif full := chunks.add((at, made), len(made.payload)):
                yield dict(full)
        if chunks.left:
            yield dict(chunks.left)

    async def _enqueue_chunk(self, jobs: dict[int, NewJob]) -> dict[int, Job | SchedulerError]:
        outcomes: dict[int, Job | SchedulerError] = {}
        give_up_at = time.monotonic() + self.settings.block_timeout_s
        while True:
            replies = await self._send(list(jobs.values()))
            blocked: dict[int, NewJob] = {}
            for (at, job), reply in zip(jobs.items(), replies, strict=True):
                outcomes[at] = self._outcome(job, reply)
                if isinstance(reply, Full) and reply.when_full == "block":
                    blocked[at] = job
            left_s = give_up_at - time.monotonic()
            if not blocked or left_s <= 0:
                return outcomes
            jobs = blocked
            await self._wait_for_space(left_s)

    async def _send(self, jobs: list[NewJob]) -> Sequence[EnqueueOutcome]:
        """Send a chunk as it is; single jobs go with those of other callers."""
        self._check_usable()
        if len(jobs) == 1 and self._enqueues is not None:
            return [await self._enqueues.ask(jobs[0])]
        return await self._enqueue_all(self.queue, jobs)

    async def _wait_for_space(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._space_waits.acquire()
        except TimeoutError:
            return
        # Redis ends the wait by the clock of its host, which may be put back meanwhile.
        try:
            with suppress(TimeoutError), translated(self.redis_url):
                async with asyncio.timeout(2 * SPACE_LOOK_S):
                    await self.queue.wait_for_space(max(0.01, min(SPACE_LOOK_S, limit_s)))
        finally:
            self._space_waits.release()

    async def _new_job(self, request: PromptRequest, trace: bytes) -> NewJob | InvalidRequest:
        try:
            route = await self._routes.find(request.model)
            return new_job(request, route, trace=trace)
        except InvalidRequest as error:
            return error

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
        return Job(self, reply.job_id, ticket=job.job_id, deduplicated=reply.deduplicated, reuse=reply.reuse)

    async def _read_routes(self) -> Mapping[str, Any]:
        async with self.commands() as queue:
            return await queue.routes()

    def job(self, job_id: str) -> Job:
        """Attach to a job by its id. The handle holds no ticket, so only `cancel(force=True)` ends it.

        Raises:
            InvalidRequest: it is no text, or no id.
        """
        if not isinstance(job_id, str):
            raise InvalidRequest(
                f"job_id: give the id of a job as text, not {type(job_id).__name__}", field="job_id"
            )
        try:
            job_id.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"job_id: {job_id!r} is not valid UTF-8", field="job_id") from None
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
        check_timeout(timeout_s)
        job = await self.enqueue(prompt, **fields)
        return await job.result(timeout_s=timeout_s)


def _traces_of(settings: Settings) -> ClientTraces:
    try:
        from scheduler.telemetry.client_traces import ClientTraces  # noqa: PLC0415  an extra
    except ImportError as error:
        raise needs("traces", "otel", error) from None
    return ClientTraces(settings.queue)


def _refuse_others(requests: list[PromptRequest]) -> None:
    for at, request in enumerate(requests):
        if not isinstance(request, PromptRequest):
            raise InvalidRequest(
                f"requests.{at}: give a PromptRequest, not {type(request).__name__}", field="requests"
            )


def not_connected() -> SchedulerError:
    """The error for using a client before it is connected or after it was closed."""
    return SchedulerError(
        "the client is not connected, or not any more: use it inside `async with AsyncClient(…)`, "
        "or await connect()"
    )
