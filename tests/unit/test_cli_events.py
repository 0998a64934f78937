"""Events as people and programs see them."""

from __future__ import annotations

import orjson
import pytest

from scheduler.cli.events import AnswerPrinter, event_fields, event_text
from scheduler.events import Delta, Done, Event, Failed, Queued, Retrying, Started, decode_event
from scheduler.model import JobError, JobResult

ERROR = JobError(code="busy", message="the engine is busy")


def done(text: str) -> Done:
    return Done(id="2-9", job_id="j", attempt=2, result=JobResult(text=text))


def delta(text: str, index: int = 0) -> Delta:
    return Delta(id="1-2", job_id="j", attempt=1, text=text, index=index)


RETRYING = Retrying(id="1-3", job_id="j", attempt=1, error=ERROR, delay_s=0.5)
FAILED = Failed(id="2-9", job_id="j", attempt=2, error=ERROR)


@pytest.mark.parametrize(
    ("events", "out", "err"),
    [
        ([delta("one "), delta("two"), done("one two")], "one two\n", ""),
        ([done("at once")], "at once\n", ""),
        (
            [delta("on"), RETRYING, delta("one"), done("one")],
            "on\none\n",
            "[the engine is busy; the answer starts again]\n",
        ),
        ([RETRYING, done("one")], "one\n", "[the engine is busy; the answer starts again]\n"),
        ([delta("on"), FAILED], "on\n", ""),
        ([delta("one"), delta("another choice", index=1), done("one")], "one\n", ""),
    ],
)
def test_an_answer_is_shown_as_it_comes_and_a_new_start_is_said(
    events: list[Event], out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printer = AnswerPrinter()
    for event in events:
        printer.show(event)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (out, err)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Queued(id="0-1", job_id="j", attempt=0), "queued"),
        (Started(id="1-1", job_id="j", attempt=1, worker="w1"), "attempt 1 on w1"),
        (delta('a "b"\x1b[2J'), r'"a \"b\"\u001b[2J"'),
        (RETRYING, "in 0.5 s, after busy: the engine is busy"),
        (FAILED, "busy: the engine is busy"),
        (done("x"), "stop, 0.00 s after the enqueue"),
    ],
)
def test_an_event_is_one_line_for_people_and_itself_for_programs(event: Event, said: str) -> None:
    line = event_text(event).plain
    assert said in line
    assert line.split()[:2] == [event.id, event.type]
    assert decode_event(orjson.dumps(event_fields(event))) == event
