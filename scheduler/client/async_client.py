"""The async client: enqueues prompts and hands out jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeGuard, TypeVar, Unpack

from pydantic import SecretStr
from redis.asyncio import Redis

from scheduler.client.connection import Connection, not_connected, open_connection
from scheduler.client.enqueuer import Enqueuer
from scheduler.client.fields import JobFields, RequestFields
from scheduler.client.job import Job, check_timeout
from scheduler.errors import InvalidRequest, SchedulerError
from scheduler.model import (
    EmbeddingRequest,
    Embeddings,
    Input,
    JobRequest,
    JobResult,
    PromptRequest,
    Ranking,
    RerankRequest,
)
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import Enqueued, NewJob
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.results.ports import ReplayPort
from scheduler.results.subscriptions import Subscriptions
from scheduler.settings import EMBEDDED, Settings, load_settings
from scheduler.telemetry.needed import needs

if TYPE_CHECKING:
    from scheduler.telemetry.client_traces import ClientTraces

ResultT = TypeVar("ResultT", bound=JobResult)


class AsyncClient:
    """Enqueues prompts and reads their events and results. One connection serves all subscriptions.

    `redis_url` overrides the URL in the settings; "embedded" starts a private server that ends with the
    client. Use it as an async context manager. It belongs to the event loop in which it was connected.
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
        self._connection: Connection | None = None
        self._enqueuer: Enqueuer
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def queue(self) -> PromptQueue:
        """The queue underneath, for tools that need more than the client offers."""
        if self._connection is None:
            raise not_connected()
        return self._connection.queue

    @property
    def redis_url(self) -> str:
        """The URL of the server in use, which may be a private one."""
        return self._server.url if self._server else self.settings.redis_url.get_secret_value()

    async def connect(self) -> None:
        """Connect, and check that a usable server answers. Safe to call twice.

        Raises:
            RedisUnavailable, RedisAuthError, RedisTooOld, NewerData: with a remedy.
        """
        async with self._connecting:
            if self._connection is not None:
                self._connection.check()
                return
            try:
                connection = await self._connect()
            except BaseException:
                await self._stop_server()
                raise
            self._connection = connection
            self._enqueuer = Enqueuer(connection, self.settings, self._handle)

    async def _connect(self) -> Connection:
        if self._given is not None:
            return Connection(self._given, self.redis_url, self.settings, owned=False, script_flags=False)
        if self.settings.redis_url.get_secret_value() == EMBEDDED:
            self._server = EmbeddedServer(self.settings.data_dir)
            await asyncio.to_thread(self._server.start)
        return await open_connection(self.redis_url, self.settings)

    async def aclose(self) -> None:
        """Close the connections. Jobs go on; open readers get a `SchedulerError`. Safe to call twice."""
        if self._connection is not None:
            self._connection.check()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()
        await self._stop_server()

    async def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)

    def _connected(self) -> Connection:
        if self._connection is None:
            raise not_connected()
        self._connection.check()
        return self._connection

    def commands(self) -> AbstractAsyncContextManager[PromptQueue]:
        """The queue, for a few callers at a time. Raises redis-py's errors as this package's."""
        return self._connected().commands()

    def reading(self) -> AbstractAsyncContextManager[tuple[ReplayPort, Subscriptions]]:
        """Everything that reading events needs. Raises redis-py's errors as this package's."""
        return self._connected().reading()

    async def enqueue(
        self, prompt: str | list[int] | JobRequest | None = None, /, **fields: Unpack[RequestFields]
    ) -> Job:
        """Enqueue one prompt; `fields` are those of `PromptRequest`. Or enqueue a request of any kind.

        Raises:
            InvalidRequest: a field is wrong, the route does another kind of work, or no `model` is given and
                there are several routes.
            UnknownModel: there is no route of that name.
            DedupConflict: another request has the same dedup key.
            QueueFull: there is no space, or, if the queue blocks, none became free in time.
            RedisUnavailable, RedisOutOfMemory: most likely nothing was enqueued; give a `job_id` to retry
                safely.
        """
        request = _request(prompt, fields)
        if self._traces is None:
            self._connected()
            return await self._enqueuer.enqueue(request)
        with self._traces.sending() as sending:
            self._connected()
            job = await self._enqueuer.enqueue(request, sending.carrier)
            sending.sent(job.id, deduplicated=job.deduplicated, reused=job._reuse is not None)
            return job

    async def enqueue_many(self, requests: Iterable[JobRequest]) -> list[Job | SchedulerError]:
        """Enqueue many requests, of any kind. Returns one outcome each, in order: the job, or its error.

        Raises:
            InvalidRequest: an item is not a request; nothing was enqueued.
            RedisUnavailable, RedisOutOfMemory: some were not enqueued; those before them were. Give each
                request a `job_id` to retry all of them safely.
        """
        requests = list(requests)
        _check_types(requests)
        if self._traces is None:
            self._connected()
            return await self._enqueuer.enqueue_many(requests)
        with self._traces.sending(len(requests)) as sending:
            self._connected()
            outcomes = await self._enqueuer.enqueue_many(requests, sending.carrier)
            sending.sent_many(outcomes)
            return outcomes

    def _handle(self, job: NewJob, reply: Enqueued) -> Job:
        return Job(self, reply.job_id, ticket=job.job_id, deduplicated=reply.deduplicated, reuse=reply.reuse)

    def job(self, job_id: str) -> Job:
        """Attach to a job by its id. The handle has no ticket, so only `cancel(force=True)` cancels the job.

        Raises:
            InvalidRequest: the id is not text, or not valid UTF-8.
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
        prompt: str | list[int] | JobRequest | None = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Unpack[RequestFields],
    ) -> JobResult:
        """Enqueue one prompt and wait for its result: `enqueue` and `Job.result` in one.

        Raises:
            SchedulerError: see `enqueue` and `Job.result`.
        """
        check_timeout(timeout_s)
        job = await self.enqueue(prompt, **fields)
        return await job.result(timeout_s=timeout_s)

    async def embed(
        self,
        input: Input,  # noqa: A002  the field's name everywhere
        *,
        dimensions: int | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Embeddings:
        """Embed texts, or token ids, and wait for their vectors: one job, which may share a call with others.

        `fields` are those of `EmbeddingRequest`.

        Raises:
            SchedulerError: see `enqueue` and `Job.result`.
        """
        request = EmbeddingRequest.parse(input=input, dimensions=dimensions, **fields)
        return _of_class(Embeddings, await self.run(request, timeout_s=timeout_s), request)

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        timeout_s: float | None = None,
        **fields: Unpack[JobFields],
    ) -> Ranking:
        """Order documents by their relevance to a query, and wait for their scores.

        `fields` are those of `RerankRequest`.

        Raises:
            SchedulerError: see `enqueue` and `Job.result`.
        """
        request = RerankRequest.parse(
            query=query, documents=documents, top_n=top_n, return_documents=return_documents, **fields
        )
        return _of_class(Ranking, await self.run(request, timeout_s=timeout_s), request)


def _of_class(cls: type[ResultT], result: JobResult, request: JobRequest) -> ResultT:
    if not isinstance(result, cls):  # the job of that id was there before
        raise InvalidRequest(f"job_id: job {request.job_id} does another kind of work", field="job_id")
    return result


def _a(request: JobRequest) -> str:
    name = type(request).__name__
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"


def _is_request(given: object) -> TypeGuard[JobRequest]:
    return isinstance(given, PromptRequest | EmbeddingRequest | RerankRequest)


def _request(prompt: str | list[int] | JobRequest | None, fields: RequestFields) -> JobRequest:
    if _is_request(prompt):
        if fields:
            raise InvalidRequest(f"give {_a(prompt)} or fields, not both")
        return prompt
    if prompt is None:
        return PromptRequest.parse(**fields)
    if "prompt" in fields:
        raise InvalidRequest("prompt: is given twice; leave out one of them", field="prompt")
    return PromptRequest.parse(prompt=prompt, **fields)


def _traces_of(settings: Settings) -> ClientTraces:
    try:
        from scheduler.telemetry.client_traces import ClientTraces  # noqa: PLC0415  an extra
    except ImportError as error:
        raise needs("traces", "otel", error) from None
    return ClientTraces(settings.queue)


def _check_types(requests: list[JobRequest]) -> None:
    for at, request in enumerate(requests):
        if not _is_request(request):
            raise InvalidRequest(
                f"requests.{at}: give a PromptRequest, EmbeddingRequest or RerankRequest, "
                f"not {type(request).__name__}",
                field="requests",
            )
