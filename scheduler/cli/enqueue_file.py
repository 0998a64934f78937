"""Enqueues a file of prompts, and writes one line per outcome."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import typer
from redis.exceptions import RedisError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scheduler.cli.output import console, json_line, remark
from scheduler.cli.session import Session
from scheduler.client.bulk import BulkOutcome, BulkRun, BulkState
from scheduler.client.request_file import RequestFile
from scheduler.errors import InvalidRequest, JobEnded, SchedulerError

STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What to do with the requests of a file, and where to write the outcomes."""

    output: Path | None
    """None for standard output."""
    skip: int
    """How many requests to leave out. The output is then appended to."""
    wait: bool
    """Whether to wait for the results."""
    timeout_s: float | None
    as_json: bool

    @property
    def plain_ids(self) -> bool:
        """Whether each line is a job's id and nothing else."""
        return not self.wait and not self.as_json and self.output is None


def refuse_same_file(file: Path, output: Path | None) -> None:
    """Refuse to overwrite the file with its own results.

    Raises:
        typer.BadParameter: they are the same file.
    """
    if output is not None and file != STDIN and file.exists() and output.exists() and file.samefile(output):
        raise typer.BadParameter("--output is the file of --file and would overwrite it: give another one")


@contextmanager
def open_requests(path: Path, defaults: dict[str, Any], system: str | None) -> Iterator[RequestFile]:
    """Open a file of requests; `-` is standard input. Input from a pipe is copied to a temporary file.

    Raises:
        InvalidRequest: it cannot be read.
    """
    try:
        lines = _seekable(path)
    except OSError as error:
        raise InvalidRequest(f"--file: {path} cannot be read: {error.strerror}", field="file") from None
    with lines:
        yield RequestFile(lines, "standard input" if path == STDIN else str(path), defaults, system)


def _seekable(path: Path) -> BinaryIO:
    if path != STDIN and path.is_file():
        return path.open("rb")
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  the caller closes it
    try:
        _copy(path, copy)
    except BaseException:
        copy.close()
        raise
    return copy


def _copy(path: Path, copy: BinaryIO) -> None:
    if path == STDIN:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        return
    with path.open("rb") as pipe:
        shutil.copyfileobj(pipe, copy)


async def enqueue_file(at: Session, requests: RequestFile, options: FileOptions) -> None:
    """Check the whole file before anything is enqueued, then read it again and send it.

    Raises:
        InvalidRequest: a line is wrong, or nothing is left to send.
        typer.Exit: with 1, if a request came to another end than it should.
    """
    total = requests.check()
    if options.skip >= total:
        raise InvalidRequest(f"--skip: {requests.name} has {total:,} requests; nothing is left", field="skip")
    with _lines_to(options) as lines, _Bar(total - options.skip, wait=options.wait) as bar:
        async with at.client() as client:
            run = BulkRun(
                client,
                wait=options.wait,
                timeout_s=options.timeout_s,
                first=options.skip,
                on_end=lambda: bar.show(run),
            )
            try:
                await _write_all(run, requests, options, lines)
            except (asyncio.CancelledError, SchedulerError, RedisError):
                bar.stop()
                _say_how_to_resume(run, total)
                raise
    remark(f"{total - options.skip:,} requests: {_counted(run.states)}")
    if run.failed:
        raise typer.Exit(1)


async def _write_all(run: BulkRun, requests: RequestFile, options: FileOptions, lines: BinaryIO) -> None:
    try:
        async with aclosing(run.outcomes(islice(requests, options.skip, None))) as outcomes:
            async for outcome in outcomes:
                _write(outcome, options, lines)
    except (asyncio.CancelledError, SchedulerError, RedisError):
        for outcome in run.unfinished():
            _write(outcome, options, lines)
        raise


def _write(outcome: BulkOutcome, options: FileOptions, lines: BinaryIO) -> None:
    if options.plain_ids and outcome.job_id:
        lines.write(outcome.job_id.encode())
    else:
        lines.write(json_line(_fields(outcome)))
    lines.write(b"\n")
    lines.flush()


def _fields(outcome: BulkOutcome) -> dict[str, Any]:
    fields: dict[str, Any] = {"index": outcome.index, "job_id": outcome.job_id, "state": outcome.state}
    if outcome.state is BulkState.ENQUEUED:
        fields["deduplicated"] = outcome.deduplicated
    if outcome.result is not None:
        fields |= {"text": outcome.result.text, "result": outcome.result}
    if outcome.error is not None:
        fields["error"] = {"code": _code(outcome.error), "message": str(outcome.error)}
    return fields


def _code(error: SchedulerError) -> str:
    return error.reason if isinstance(error, JobEnded) else error.code


def _say_how_to_resume(run: BulkRun, total: int) -> None:
    ended = f"{run.ended:,} have ended ({_counted(run.states)})" if run.ended else "none has ended"
    remark(f"Stopped: {run.position:,} of {total:,} requests were sent; {ended}.")
    if run.in_queue:
        remark(
            f"{run.in_queue:,} are still in the queue. Their lines have the state enqueued; "
            "`prompt-scheduler subscribe JOB_ID` follows one."
        )
    if run.position < total:
        remark(f"To send the rest, repeat the command with --skip {run.position}")


def _counted(states: Mapping[BulkState, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))


@contextmanager
def _lines_to(options: FileOptions) -> Iterator[BinaryIO]:
    if options.output is None:
        yield sys.stdout.buffer
        return
    try:
        lines = options.output.open("ab" if options.skip else "wb")
    except OSError as error:
        raise InvalidRequest(f"--output: {options.output} cannot be written: {error.strerror}") from None
    with lines:
        yield lines


class _Bar:
    """A progress bar on standard error; nothing if that is not a terminal."""

    def __init__(self, total: int, *, wait: bool) -> None:
        shown = console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(4, min(40, shown.width - 46))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}", style="red", markup=False),
            TimeRemainingColumn(compact=True),
        )
        self._progress = Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True)
        self._task = self._progress.add_task("answering" if wait else "sending", total=total, failed="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def show(self, run: BulkRun) -> None:
        """Show how far the run is."""
        failed = f"{run.failed:,} failed" if run.failed else ""
        self._progress.update(self._task, completed=run.ended, failed=failed)

    def stop(self) -> None:
        """Take the bar away. Safe to call twice."""
        self._progress.stop()
