"""The client without async."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from scheduler import (
    Client,
    DedupConflict,
    Done,
    JobState,
    PromptRequest,
    ResultTimeout,
    SchedulerError,
    SyncJob,
    load_settings,
)
from scheduler.testing import local_client
from tests.patience import SOON_S


@pytest.fixture
def client() -> Iterator[Client]:
    with local_client() as client:
        yield client


@pytest.fixture
def idle_client() -> Iterator[Client]:
    """Its engine takes 30 s for a word: nothing ends."""
    slow = {"endpoints": [{"backend": "echo", "options": {"first_delay_s": 29.0}}]}
    with local_client(load_settings(environ={}, routes={"echo": slow})) as client:
        yield client


def test_it_does_what_the_async_client_does(client: Client) -> None:
    job = client.enqueue("one two", priority=7)
    types = [event.type for event in job.events()]
    assert types[-1] == "done"
    assert [event.type for event in job.events_json()] == types
    assert job.result(timeout_s=SOON_S).text == "one two"
    assert job.info().state is JobState.DONE
    assert client.run("three", timeout_s=SOON_S).text == "three"
    assert client.job(job.id).result(timeout_s=SOON_S).text == "one two"
    assert not job.cancel()
    assert repr(job) == f"SyncJob({job.id!r}, deduplicated=False)"


def test_it_tells_its_server_once_it_is_connected(valkey_url: str) -> None:
    client = Client(valkey_url)
    with pytest.raises(SchedulerError, match="not connected"):
        client.redis_url  # noqa: B018  to read it is what raises
    with client:
        assert client.redis_url == valkey_url


def test_many_have_one_outcome_each(client: Client) -> None:
    requests = [PromptRequest(prompt="a", dedup_key="k", delay_s=60.0)] * 2
    outcomes = client.enqueue_many([*requests, PromptRequest(prompt="b", dedup_key="k")])
    assert [type(outcome) for outcome in outcomes] == [SyncJob, SyncJob, DedupConflict]


def test_a_result_in_time_or_an_error(idle_client: Client) -> None:
    job = idle_client.enqueue("x")
    with pytest.raises(ResultTimeout):
        job.result(timeout_s=0.05)
    job.set_priority(9)
    assert job.cancel()


def test_threads_may_share_it(client: Client) -> None:
    with ThreadPoolExecutor(16) as threads:
        texts = list(threads.map(lambda n: client.run(f"p {n}", timeout_s=SOON_S).text, range(64)))
    assert texts == [f"p {n}" for n in range(64)]


def test_events_may_be_left_early(client: Client) -> None:
    job = client.enqueue("a b c")
    for event in job.events():
        assert event.type == "queued"
        break
    gc.collect()
    assert isinstance(list(job.events())[-1], Done)


def test_events_may_be_dropped_after_the_client_has_closed() -> None:
    with local_client() as client:
        events = client.enqueue("a").events()
        next(events)
    assert isinstance(events, Generator)
    events.close()
    with pytest.raises(SchedulerError, match="not connected"):
        client.enqueue("b")


def test_ctrl_c_in_a_wait_ends_the_work_and_leaves_the_client_usable(
    idle_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = idle_client.enqueue("x")
    events = job.events()
    assert next(events).type == "queued"
    assert next(events).type == "started"
    result = Future.result
    interrupted: list[bool] = []

    def interrupt_once(self: Future[object], timeout: float | None = None) -> object:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return result(self, timeout)

    monkeypatch.setattr(Future, "result", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    assert interrupted == [True]
    assert job.cancel()


def test_closing_ends_the_waits_of_other_threads() -> None:
    slow = {"endpoints": [{"backend": "echo", "options": {"first_delay_s": 29.0}}]}
    errors: list[BaseException] = []
    waiting = threading.Event()
    with local_client(load_settings(environ={}, routes={"echo": slow})) as client:
        job = client.enqueue("x")

        def wait() -> None:
            try:
                for event in job.events():
                    if event.type == "started":
                        waiting.set()
            except SchedulerError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(SOON_S)
    thread.join(5)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_connecting_and_closing_twice_does_no_harm() -> None:
    with local_client() as client:
        client.connect()
        client.connect()
        assert client.run("x", timeout_s=SOON_S).text == "x"
    client.close()
    client.close()
    with pytest.raises(SchedulerError, match="with Client"):
        client.run("y")


async def test_it_may_be_used_and_closed_inside_an_async_program() -> None:
    before = threading.active_count()
    with local_client() as client:
        assert client.run("x", timeout_s=SOON_S).text == "x"
    assert threading.active_count() == before


def test_an_unconnected_client_says_what_to_do() -> None:
    with pytest.raises(SchedulerError, match="with Client"):
        Client(settings=load_settings(environ={})).job("x")


def test_a_handle_outlives_its_client_with_a_clear_error() -> None:
    with local_client() as client:
        job = client.enqueue("x")
    with pytest.raises(SchedulerError, match="the client is closed"):
        job.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_is_told_to_make_its_own_client(client: Client) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            client.enqueue("x")
        except SchedulerError as error:
            code = 0 if "forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_no_thread_is_left_after_a_failed_connect() -> None:
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(SchedulerError):
            Client("redis://127.0.0.1:1").connect()
    assert threading.active_count() == before
