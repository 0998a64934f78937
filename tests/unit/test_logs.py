"""Log lines: what is in them, what never is, and who sets them up."""

from __future__ import annotations

import asyncio
import io
import logging
import logging.handlers
import queue
import re
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import Settings, load_settings
from scheduler.host.arq_logs import ArqLines, listen_to_arq, show_logs
from scheduler.logs import (
    HOSTED,
    IDS,
    HumanFormatter,
    IdFilter,
    JsonFormatter,
    LogLevel,
    attempt_ids,
    change_level,
    identify,
    ids_of,
    is_ours,
    set_up,
    speak_for,
    speak_of,
    trace_ids,
    traced,
    wordless,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
SECRET = "a-private-matter"
JOB = SimpleNamespace(id="job-1", tenant="acme", attempt=2)
OTHER = SimpleNamespace(id="job-2", tenant="others", attempt=1)


def record_of(message: object = "hello", *args: object, **fields: Any) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "some.logger", "levelno": logging.INFO, "levelname": "INFO"})
    record.__dict__.update(msg=message, args=args, **fields)
    return record


def parsed(record: logging.LogRecord, **options: Any) -> dict[str, Any]:
    line = JsonFormatter(**options).format(record)
    assert "\n" not in line
    fields: dict[str, Any] = orjson.loads(line)
    return fields


def raised(make: Callable[[], Any]) -> BaseException:
    """What a function raises, with its traceback."""
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def fail() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(f"cannot digest {SECRET}") from error


def fail_together() -> None:
    raise BaseExceptionGroup(SECRET, [raised(fail), OSError(SECRET)])


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError(SECRET)

    __repr__ = __str__


# JSON


def test_line_has_time_level_logger_and_message_and_no_more_than_there_is() -> None:
    fields = parsed(record_of("%s of %d", "one", 3, created=1_700_000_000.0625))
    assert fields == {
        "time": "2023-11-14T22:13:20.062Z",
        "level": "info",
        "logger": "some.logger",
        "message": "one of 3",
    }


def test_ids_that_a_record_brings_along_are_in_its_line() -> None:
    fields = parsed(record_of(**ids_of(JOB), worker="w", queue="q"))
    found = {name: fields[name] for name in ("queue", "worker", "job", "tenant", "attempt")}
    assert found == {"queue": "q", "worker": "w", "job": "job-1", "tenant": "acme", "attempt": 2}


def test_extra_that_is_no_id_is_left_out() -> None:
    assert SECRET not in JsonFormatter().format(record_of(prompt=SECRET, extra={"x": SECRET}))


@pytest.mark.parametrize("value", [object(), 2**70, b"bytes", "\ud800", ["a"], 1.5, None, Unprintable()])
def test_id_of_any_kind_makes_a_line(value: object) -> None:
    fields = parsed(record_of(job=value, attempt=3))
    assert fields["attempt"] == 3
    assert ("job" in fields) is (value is not None)


@pytest.mark.parametrize(
    ("message", "args", "shown"),
    [
        ("%d jobs", ("many",), "%d jobs (its arguments do not fit)"),
        ("no place", ("one",), "no place (its arguments do not fit)"),
        ("%s and %s", ("one",), "%s and %s (its arguments do not fit)"),
        ("%s", (Unprintable(),), "%s (its arguments do not fit)"),
        (Unprintable(), (), "<Unprintable> (its arguments do not fit)"),
        ({"a": 1}, (), "{'a': 1}"),
        ("two\nlines", (), "two\nlines"),
    ],
)
def test_odd_message_makes_a_line(message: object, args: tuple[object, ...], shown: str) -> None:
    assert parsed(record_of(message, *args))["message"] == shown
    assert HumanFormatter().format(record_of(message, *args)).count("\n") == 0


@given(st.text(st.characters()), st.text(st.characters(codec=None)))
def test_any_text_makes_one_line(message: str, job: str) -> None:
    parsed(record_of(message, job=job))
    assert len(HumanFormatter().format(record_of(message, job=job)).splitlines()) == 1


@pytest.mark.parametrize("formatter", [JsonFormatter(), HumanFormatter()])
@pytest.mark.parametrize("make", [fail, fail_together])
def test_exception_is_told_by_type_and_place_without_its_words(
    formatter: logging.Formatter, make: Callable[[], None]
) -> None:
    error = raised(make)
    error.add_note(SECRET)
    line = formatter.format(record_of(exc_info=(type(error), error, error.__traceback__)))
    assert SECRET not in line
    assert "ValueError" in line
    assert "KeyError" in line
    assert re.search(r"test_logs\.py:\d+ fail", line)


def test_fields_of_an_exception() -> None:
    error = raised(fail)
    said = parsed(record_of(exc_info=(type(error), error, error.__traceback__)))["error"]
    assert said["type"] == "ValueError"
    assert re.fullmatch(r".*/test_logs\.py:\d+ fail", said["frames"][-1])
    assert said["cause"]["type"] == "KeyError"
    assert "message" not in said


def test_words_of_an_exception_are_there_for_who_asks() -> None:
    error = raised(fail)
    record = record_of(exc_info=(type(error), error, error.__traceback__))
    assert parsed(record, words=True)["error"]["message"] == f"cannot digest {SECRET}"
    assert f"ValueError: cannot digest {SECRET}" in HumanFormatter(words=True).format(record)


@pytest.mark.parametrize("info", [None, True, (None, None, None), "odd", (1, 2)])
def test_exc_info_without_an_exception_is_passed_over(info: object) -> None:
    assert "error" not in parsed(record_of(exc_info=info))


def test_exception_without_end_is_cut() -> None:
    def recurse() -> None:
        recurse()

    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    for error in (raised(recurse), first, wordless(first)):
        assert (
            len(JsonFormatter().format(record_of(exc_info=(type(error), error, error.__traceback__))))
            < 20_000
        )


# Whoever formats it


@pytest.mark.parametrize("make", [fail, fail_together])
def test_what_the_core_logs_has_no_words_under_anybodys_formatter(make: Callable[[], None]) -> None:
    logger = logging.getLogger("some.logger")
    error = traced(raised(make), logger)
    text = logging.Formatter().format(record_of(exc_info=(type(error), error, error.__traceback__)))
    assert SECRET not in text
    assert "ValueError" in text
    assert "KeyError" in text
    assert "test_logs.py" in text


def test_at_debug_the_exception_itself_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError(SECRET)
    logger = logging.getLogger("some.logger")
    assert traced(error, logger) is not error
    caplog.set_level(logging.DEBUG, logger="some.logger")
    assert traced(error, logger) is error


# People


def test_line_for_people_is_short_and_ends_with_the_ids() -> None:
    line = HumanFormatter().format(record_of("hello %s", "you", **ids_of(JOB), worker="w", queue="q"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} INFO    hello you  job=job-1 tenant=acme attempt=2", line)


def test_colours_are_for_a_terminal_alone() -> None:
    record = record_of(**ids_of(JOB), levelno=logging.ERROR, levelname="ERROR")
    assert "\x1b" not in HumanFormatter().format(record)
    coloured = HumanFormatter(colour=True).format(record)
    assert "\x1b[31mERROR" in coloured
    assert "\x1b[2mjob=job-1 tenant=acme attempt=2\x1b[0m" in coloured


def test_terminal_commands_and_forged_lines_are_shown_and_not_obeyed() -> None:
    line = HumanFormatter().format(record_of("\x1b[2J\n12:00:00 INFO forged", tenant="a\nb"))
    assert "\\x1b[2J\\n12:00:00 INFO forged" in line
    assert "tenant=a\\nb" in line


# Ids


@pytest.mark.parametrize(
    "traceparent",
    [
        *(None, 5, "", "x", TRACEPARENT.upper(), TRACEPARENT[:-1], f" {TRACEPARENT}", f"{TRACEPARENT}\n"),
        *(f"ff{TRACEPARENT[2:]}", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"),
    ],
)
def test_traceparent_that_is_none_gives_no_ids(traceparent: object) -> None:
    assert trace_ids(traceparent) == {}


def test_traceparent_gives_trace_and_span() -> None:
    assert trace_ids(TRACEPARENT) == {"trace_id": TRACE, "span_id": SPAN}


async def test_ids_are_those_of_the_task_and_of_the_tasks_that_it_makes() -> None:
    async def job(which: Any) -> list[dict[str, Any]]:
        speak_of(which).traceparent = TRACEPARENT
        await asyncio.sleep(0)
        nested = asyncio.create_task(line())
        return [await line(), await nested, await asyncio.to_thread(parsed, record_of())]

    async def line() -> dict[str, Any]:
        return parsed(record_of())

    for which, lines in zip((JOB, OTHER), await asyncio.gather(job(JOB), job(OTHER)), strict=True):
        for fields in lines:
            assert (fields["job"], fields["tenant"], fields["attempt"]) == (
                which.id,
                which.tenant,
                which.attempt,
            )
            assert (fields["trace_id"], fields["span_id"]) == (TRACE, SPAN)
    assert "job" not in await line()


async def test_ids_can_be_taken_along_and_laid_down() -> None:
    async def elsewhere(ids: Any) -> dict[str, Any]:
        speak_for(ids)
        return parsed(record_of())

    async def job() -> list[dict[str, Any]]:
        speak_of(JOB)
        ids = attempt_ids()
        return [await asyncio.create_task(elsewhere(ids)), await asyncio.create_task(elsewhere(None))]

    with_ids, without = await asyncio.create_task(job())
    assert with_ids["job"] == "job-1"
    assert "job" not in without


async def test_line_about_another_job_has_none_of_this_ones_ids() -> None:
    async def job() -> dict[str, Any]:
        identify(worker="w", queue="q")
        speak_of(JOB).traceparent = TRACEPARENT
        return parsed(record_of(job="job-2"))

    fields = await asyncio.create_task(job())
    assert {
        name: fields.get(name) for name in ("job", "tenant", "attempt", "trace_id", "worker", "queue")
    } == {
        "job": "job-2",
        "tenant": None,
        "attempt": None,
        "trace_id": None,
        "worker": "w",
        "queue": "q",
    }


async def test_filter_gives_ids_to_a_format_of_ones_own_and_keeps_them_over_a_queue() -> None:
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)
    handler.addFilter(IdFilter())

    async def job() -> None:
        speak_of(JOB)
        handler.handle(record_of("inside"))

    await asyncio.create_task(job())
    handler.handle(record_of("outside"))
    inside, outside = records.get(), records.get()
    own = logging.Formatter("%(message)s [%(job)s %(tenant)s %(attempt)s]")
    assert own.format(inside) == "inside [job-1 acme 2]"
    assert own.format(outside) == "outside [  ]"
    assert parsed(inside)["job"] == "job-1"
    assert "job" not in parsed(outside)


# Setting up


def as_in_a_new_process(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test without the handlers that pytest has put onto the root logger, and undo what it does."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        names = ("", *HOSTED, "arq.worker", "httpx", "my.stage")
        loggers = [logging.getLogger(name) for name in names]
        before = [(log, log.handlers[:], log.filters[:], log.level) for log in loggers]
        logging.getLogger().handlers = []
        try:
            test(*args, **kwargs)
        finally:
            for log, handlers, filters, level in before:
                log.handlers, log.filters = handlers, filters
                log.setLevel(level)

    return run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def messages(stream: io.StringIO) -> list[str]:
    return [orjson.loads(line)["message"] for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("log_format", "stream", "start"),
    [
        ("auto", io.StringIO, '{"time":'),
        ("auto", Terminal, "\x1b[2m"),
        ("json", Terminal, '{"time":'),
        ("human", io.StringIO, "0123456789"),
    ],
)
@as_in_a_new_process
def test_terminal_gets_lines_for_people_and_all_else_json(
    monkeypatch: pytest.MonkeyPatch,
    log_format: Any,
    stream: type[io.StringIO],
    start: str,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    set_up(log_format, "info", stream=(to := stream()))
    logging.getLogger("scheduler.x").info("hello")
    said = to.getvalue()
    assert said.startswith(start) if len(start) != 10 else said[0] in start


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
@as_in_a_new_process
def test_no_colours_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    set_up("auto", "info", stream=(to := Terminal()))
    logging.getLogger("scheduler.x").info("hello")
    assert "hello" in to.getvalue()
    assert "\x1b" not in to.getvalue()


@as_in_a_new_process
def test_our_loggers_speak_from_the_level_on_and_others_from_warnings_on() -> None:
    set_up("json", "info", stream=(to := io.StringIO()))
    for name in ("scheduler.engine", "workers.http", "arq.worker", "httpx", "my.stage"):
        logging.getLogger(name).debug("debug of %s", name)
        logging.getLogger(name).info("info of %s", name)
    logging.getLogger("httpx").warning("warning of httpx")
    logging.getLogger("my.stage").setLevel(logging.INFO)
    logging.getLogger("my.stage").info("as asked for")
    assert messages(to) == [
        *("info of scheduler.engine", "info of workers.http", "info of arq.worker", "warning of httpx"),
        "as asked for",
    ]


@as_in_a_new_process
def test_level_can_change_and_takes_the_words_of_exceptions_along() -> None:
    set_up("json", "warning", stream=(to := io.StringIO()))
    log = logging.getLogger("scheduler.x")
    levels: tuple[LogLevel, ...] = ("debug", "error", "info")
    for level in levels:
        log.info("at info")
        log.error("failed", exc_info=ValueError(SECRET))
        change_level(level)
        log.info("then at %s", level)
    lines = [orjson.loads(line) for line in to.getvalue().splitlines()]
    assert [line["message"] for line in lines] == [
        *("failed", "then at debug"),
        *("at info", "failed"),
        *("failed", "then at info"),
    ]
    words = [line["error"].get("message") for line in lines if "error" in line]
    assert words == [None, SECRET, None]


@as_in_a_new_process
def test_level_of_a_users_own_logging_is_not_changed() -> None:
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("scheduler").setLevel(logging.ERROR)
    change_level("debug")
    assert logging.getLogger("scheduler").level == logging.ERROR


def settings_of(**values: Any) -> Settings:
    return load_settings(environ={}, **values)


@as_in_a_new_process
def test_arqs_own_handler_gives_way_to_ours() -> None:
    logging.getLogger("arq").addHandler(arqs := logging.StreamHandler(own := io.StringIO()))
    show_logs(settings_of())
    assert is_ours()
    assert arqs not in logging.getLogger("arq").handlers
    logging.getLogger("arq.worker").warning("hello")
    assert own.getvalue() == ""


def snapshot() -> list[tuple[str, list[logging.Handler], int]]:
    return [(log.name, log.handlers[:], log.level) for log in map(logging.getLogger, ("", *HOSTED))]


@pytest.mark.parametrize("whose", ["", "scheduler"])
@as_in_a_new_process
def test_logging_that_a_user_has_set_up_stays_as_it_is(whose: str) -> None:
    for name in {whose, "workers"}:
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).setLevel(logging.ERROR)
    before = snapshot()
    show_logs(settings_of(log_format="json", log_level="debug"))
    assert snapshot() == before
    assert not is_ours()


def arq_lines(**settings: str) -> logging.Logger:
    """arq's logger when the host listens to it."""
    listen_to_arq(settings_of())
    listen_to_arq(settings_of(log_format="json", **settings))
    log = logging.getLogger("arq.worker")
    assert len([one for one in log.filters if isinstance(one, ArqLines)]) == 1
    return log


@as_in_a_new_process
def test_first_line_of_arq_sets_logging_up(capsys: pytest.CaptureFixture[str]) -> None:
    log = arq_lines()
    logging.getLogger("arq").setLevel(logging.INFO)
    logging.getLogger("arq").addHandler(logging.NullHandler())
    log.info("Starting worker for %d functions: %s", 1, "run_prompt")
    log.info("%6.2fs → %s(%s)%s", 0.1, "id:run_prompt", "…", "")
    log.info("recording health: %s", "x")
    log.warning("%6.2fs ! %s max retries %d exceeded", 0.1, "id", 5)
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == [
        "Starting worker for 1 functions: run_prompt",
        "  0.10s ! id max retries 5 exceeded",
    ]


@as_in_a_new_process
def test_first_line_of_arq_is_below_a_higher_level(capsys: pytest.CaptureFixture[str]) -> None:
    log = arq_lines(log_level="warning")
    logging.getLogger("arq").setLevel(logging.INFO)
    log.info("Starting worker for %d functions: %s", 1, "run_prompt")
    assert is_ours()
    assert capsys.readouterr().err == ""


@as_in_a_new_process
def test_errors_that_arq_logs_have_no_words_for_anybodys_handler() -> None:
    logging.getLogger().addHandler(logging.StreamHandler(own := io.StringIO()))
    log = arq_lines()
    error = raised(fail)
    log.error("%s failed, %s: %s", "id:run_prompt", type(error).__name__, error, exc_info=error)
    logging.getLogger("arq").setLevel(logging.INFO)
    log.info("→ %s", "stays")
    assert not is_ours()
    assert SECRET not in own.getvalue()
    assert "id:run_prompt failed, ValueError: ValueError\nTraceback" in own.getvalue()
    assert "→ stays" in own.getvalue()


@as_in_a_new_process
def test_broken_stream_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("json", "info", stream=(to := io.StringIO()))
    to.close()
    logging.getLogger("scheduler").info("to nobody")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("given", "level"), [("INFO", "info"), ("Warning", "warning")])
def test_level_may_be_written_in_capitals(given: str, level: str) -> None:
    assert load_settings(environ={"SCHEDULER_LOG_LEVEL": given}).log_level == level


# The document

DOCUMENT = Path(__file__).parents[2] / "docs" / "logs.md"


def test_document_names_each_field_and_no_other() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## JSON")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"\w+", row)]
    error = ValueError()
    record = record_of(**dict.fromkeys(IDS, "x"), exc_info=(ValueError, error, None))
    assert set(named) == set(parsed(record))
    example = re.search(r"^\{.*\}$", section, re.MULTILINE)
    assert example
    assert set(orjson.loads(example[0])) <= set(named)


def test_logging_of_ones_own_works_as_the_document_has_it(tmp_path: Path) -> None:
    example = DOCUMENT.read_text(encoding="utf-8").rpartition("```python\n")[2].partition("```")[0]
    program = """
import logging, logging.config
from types import SimpleNamespace
from scheduler.logs import speak_of
logging.config.dictConfig(LOGGING)
speak_of(SimpleNamespace(id="job-1", tenant="acme", attempt=2))
logging.getLogger("scheduler.engine.engine").info("hello")
"""
    done = subprocess.run(
        [sys.executable, "-c", example + program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith(" INFO hello [job-1 ]\n")
    line = orjson.loads((tmp_path / "worker.jsonl").read_text(encoding="utf-8"))
    assert (line["message"], line["job"], line["tenant"]) == ("hello", "job-1", "acme")
