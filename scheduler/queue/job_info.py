"""Makes a `JobInfo` from the short fields of a stored record (docs/architecture.md lists them). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import orjson

from scheduler.model import DEFAULT_TENANT, DedupMode, HistoryEntry, JobError, JobInfo, JobState

FIELDS = list("spltqRbdmjHxuanfowceri")
"""The fields of a record, a letter each, whose values `make_job_info` takes in this order."""

HISTORY = "y"
"""The field with the history that the others do not tell; up to some kilobytes."""


def make_job_info(
    job_id: str,
    values: Sequence[bytes | None],
    *,
    tickets: int,
    position: int | None = None,
    history: bytes | None = None,
) -> JobInfo | None:
    """Make a `JobInfo` from the values of `FIELDS`. None if there is no record, or it is damaged.

    `tickets` is the size of the job's set of tickets, 0 if nobody has joined it.
    """
    record = {
        name: value.decode("utf-8", "replace")
        for name, value in zip(FIELDS, values, strict=True)
        if value is not None
    }
    try:
        state = JobState(record["s"])
        info = JobInfo(
            id=job_id,
            state=state,
            model=record["l"],
            priority=int(record["p"]),
            tenant=record.get("t", DEFAULT_TENANT),
            position=position if state in (JobState.WAITING, JobState.HELD) else None,
            attempts=int(record.get("n", 0)),
            failures=int(record.get("f", 0)),
            lost_leases=int(record.get("o", 0)),
            max_attempts=_number(record.get("a")),
            # The first ticket is the job's id; it is stored only when there is a second.
            tickets=0 if state.ended else tickets if "j" in record else 1,
            joined=int(record.get("j", 0)),
            hits=int(record.get("H", 0)),
            dedup=DedupMode(record.get("m", DedupMode.UNTIL_FINISHED)) if "d" in record else None,
            worker=record.get("w"),
            error=None if state is JobState.DONE else _error(record.get("i")),
            reason=record.get("r"),
            enqueued_at_ms=_enqueued_at_ms(record),
            due_at_ms=_number(record.get("u")),
            deadline_at_ms=_number(record.get("x")),
            started_at_ms=_number(record.get("c")),
            ended_at_ms=_number(record.get("e")),
        )
    except (KeyError, ValueError):
        return None
    if history is None:
        return info
    return info.model_copy(update={"history": _history(info, history)})


def _enqueued_at_ms(record: Mapping[str, str]) -> int:
    """Stored only if it differs from when the job became ready; and that only if the rank does not say it."""
    stored = record.get("b") or record.get("R")
    return int(stored) if stored else int(record["q"]) // 1000


def _number(value: str | None) -> int | None:
    return None if value is None else int(value)


def _error(text: str | None) -> JobError | None:
    if not text:
        return None
    try:
        raw = orjson.loads(text)
        return JobError(**{**raw, "code": str(raw["code"]), "message": str(raw["message"])})
    except (ValueError, KeyError, TypeError):
        return JobError(code="unknown", message=text)


def _history(info: JobInfo, stored: bytes) -> list[HistoryEntry]:
    """The history in order: the stored entries, with the enqueue, the last claim and the end put in."""
    told = list(_stored(stored))
    if info.started_at_ms is not None:
        claimed = HistoryEntry(
            at_ms=info.started_at_ms, what="claimed", worker=info.worker, attempt=info.attempts
        )
        told.insert(sum(_precedes(entry, claimed) for entry in told), claimed)
    told.insert(0, HistoryEntry(at_ms=info.enqueued_at_ms, what="enqueued"))
    if info.ended_at_ms is not None:
        told.append(_end(info, info.ended_at_ms))
    return told


def _precedes(entry: HistoryEntry, claimed: HistoryEntry) -> bool:
    # A claim and its outcome may share a millisecond.
    return (entry.at_ms, entry.attempt or 0) < (claimed.at_ms, claimed.attempt or 0)


def _end(info: JobInfo, at_ms: int) -> HistoryEntry:
    error = info.error if info.state is JobState.FAILED else None
    return HistoryEntry(
        at_ms=at_ms,
        what=info.state.value,
        worker=info.worker,
        attempt=info.attempts or None,
        detail=f"{error.code}: {error.message}" if error else info.reason,
    )


def _stored(stored: bytes) -> Iterator[HistoryEntry]:
    try:
        rows = orjson.loads(b"[" + stored + b"]")
        for at_ms, what, worker, attempt, detail, *repeated in rows:
            count, first_at_ms = repeated or (1, None)
            yield HistoryEntry(
                at_ms=at_ms,
                what=what,
                worker=worker or None,
                attempt=attempt or None,
                detail=_detail(detail),
                count=count,
                first_at_ms=first_at_ms,
            )
    except (ValueError, TypeError):
        return


def _detail(detail: str) -> str | None:
    if not detail.startswith("{"):
        return detail or None
    error = _error(detail)
    return f"{error.code}: {error.message}" if error and error.code != "unknown" else detail
