"""What the documentation promises of the package's surface is there, and importing it does nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any, get_type_hints

import pytest

import scheduler
from scheduler import AsyncClient, Client, Job, Priority, PromptRequest, SyncJob
from scheduler.client.fields import JobFields, RequestFields

PROMISED = {
    *("AsyncClient", "Client", "Job", "SyncJob", "Priority", "PromptRequest", "GenerationParams", "Message"),
    *("JobState", "JobInfo", "JobResult", "JobError", "Usage", "Timings", "Source", "DedupMode", "Choice"),
    *("Queued", "Started", "Delta", "Retrying", "Done", "Failed", "Cancelled", "Expired", "Shed", "Event"),
    "RawEvent",
    *("SchedulerError", "InvalidRequest", "UnknownModel", "ConfigError", "DedupConflict", "QueueFull"),
    *("NoTicket", "JobNotFound", "InvalidTransition", "ResultTimeout", "JobEnded", "JobFailed"),
    *("JobCancelled", "JobExpired", "JobShed", "RedisError", "RedisUnavailable", "RedisAuthError"),
    *("EmbeddingRequest", "RerankRequest", "JobRequest", "Embeddings", "Ranking", "Ranked"),
    *("RedisTooOld", "RedisOutOfMemory", "Settings", "load_settings"),
}
REQUEST_FIELDS = [
    *("prompt", "messages", "model", "priority", "dedup_key", "dedup", "tenant", "session", "deadline_s"),
    *("delay_s", "max_attempts", "max_waits", "result_ttl_s", "tools", "tool_choice", "response_format"),
    *("params", "stream", "extra_body", "metadata", "job_id"),
]
RESULT_FIELDS = {
    *("text", "message", "tool_calls", "reasoning", "finish_reason", "usage", "model", "endpoint"),
    *(
        "attempts",
        "reused",
        "hits",
        "age_s",
        "sources",
        "timings",
        "raw_finish_reason",
        "logprobs",
        "choices",
    ),
    "extra",
}


def test_all_is_sorted_and_has_what_is_promised() -> None:
    assert scheduler.__all__ == sorted(scheduler.__all__)
    assert len(set(scheduler.__all__)) == len(scheduler.__all__)
    assert set(scheduler.__all__) >= PROMISED
    for name in scheduler.__all__:
        assert getattr(scheduler, name) is not None


def test_requests_and_results_have_the_promised_fields() -> None:
    assert set(PromptRequest.model_fields) == set(REQUEST_FIELDS)
    shared = set(scheduler.JobRequest.model_fields)
    assert shared < set(REQUEST_FIELDS)
    assert set(scheduler.EmbeddingRequest.model_fields) - shared == {"input", "dimensions"}
    assert set(scheduler.RerankRequest.model_fields) - shared == {
        *("query", "documents", "top_n", "return_documents")
    }
    assert {"vectors", "usage", "dimensions"} <= set(dir(scheduler.Embeddings(embeddings=[])))
    assert {"results", "usage"} <= set(dir(scheduler.Ranking()))
    assert set(scheduler.JobResult.model_fields) == RESULT_FIELDS
    assert set(scheduler.Usage.model_fields) == {
        *("input_tokens", "output_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"),
        *("cache_write_tokens", "input_audio_tokens", "output_audio_tokens", "cost", "extra"),
    }
    assert {"text", "reasoning", "tool_calls", "index", "logprobs", "extra"} <= set(
        scheduler.Delta.__dataclass_fields__
    )


def test_enqueue_takes_every_field_of_a_request_by_name() -> None:
    assert set(get_type_hints(RequestFields)) == set(REQUEST_FIELDS)


@pytest.mark.parametrize("client", [AsyncClient, Client])
def test_other_kinds_of_work_have_a_call_of_their_own(client: Any) -> None:
    assert list(inspect.signature(client.embed).parameters)[:2] == ["self", "input"]
    assert list(inspect.signature(client.rerank).parameters)[:3] == ["self", "query", "documents"]
    assert set(get_type_hints(JobFields)) == set(scheduler.JobRequest.model_fields)


def test_priorities_have_the_promised_levels() -> None:
    levels = {"BACKGROUND": 1, "LOW": 3, "NORMAL": 5, "HIGH": 7, "CRITICAL": 9}
    assert {level.name: level.value for level in Priority} == levels


@pytest.mark.parametrize("client", [AsyncClient, Client])
def test_clients_have_the_promised_calls(client: type) -> None:
    for name in ("enqueue", "run"):
        prompt, *others = list(inspect.signature(getattr(client, name)).parameters.values())[1:]
        assert (prompt.name, prompt.kind) == ("prompt", inspect.Parameter.POSITIONAL_ONLY)
        assert all(one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD) for one in others)
    assert list(inspect.signature(client.enqueue_many).parameters) == ["self", "requests"]  # type: ignore[attr-defined]  # found by name
    assert list(inspect.signature(client.job).parameters) == ["self", "job_id"]  # type: ignore[attr-defined]  # found by name


@pytest.mark.parametrize("handle", [Job, SyncJob])
def test_handles_have_the_promised_calls(handle: type) -> None:
    for name, option in (("result", "timeout_s"), ("cancel", "force")):
        (parameter,) = list(inspect.signature(getattr(handle, name)).parameters.values())[1:]
        assert (parameter.name, parameter.kind) == (option, inspect.Parameter.KEYWORD_ONLY)
    for name in ("events", "info", "set_priority"):
        assert callable(getattr(handle, name))


def test_the_client_without_async_has_every_call_of_the_other() -> None:
    def calls(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")}

    assert calls(AsyncClient) - calls(Client) == {"aclose", "commands", "queue", "reading"}
    handle = {name for name in vars(Job) if not name.startswith("_")}
    assert handle - calls(SyncJob) == {"channel", "deduplicated", "id"}, "those are plain attributes there"


def test_importing_the_package_does_nothing_but_import() -> None:
    program = """
import os, sys, threading
before = dict(os.environ)
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)
import scheduler
heavy = {"arq", "click", "typer", "rich", "jinja2", "fakeredis", "uvloop", "httpx", "bm25s", "pytest"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not opened
assert threading.active_count() == 1
assert dict(os.environ) == before
"""
    environ = {"SCHEDULER_CONFIG": "/nowhere.toml", "SCHEDULER_NONSENSE": "1", "PATH": ""}
    environ["PYTHONPATH"] = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'WorkerSetting'"):
        _ = scheduler.WorkerSetting
