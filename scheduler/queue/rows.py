"""What scripts take and return row by row: one table of fields, from which both sides are made.

A script has a number for each field of each row, counted from 0, and the width of each row: `NEW_PRIORITY`,
`NEW_WIDTH`. A table in a script that fills a row names its fields, one a line, and has the mark
`-- @row "claimed"` above it; the loader brings the fields into the order of the row.
"""

from __future__ import annotations

import re

from scheduler.queue.records import ClaimedJob, NewJob, Return

ROWS: dict[str, tuple[str, ...]] = {
    "new": NewJob._fields,  # enqueue, for each job
    "wanted": ("lane", "quota", "reserved", "offers"),  # claim, for each lane
    "claimed": ClaimedJob._fields,  # the reply of claim, for each job
    "return": Return._fields,  # retry, for each job
    "publication": ("job_id", "token", "first_seq", "events"),  # publish; the events follow, so many
    "ending": ("job_id", "token", "state", "first_seq", "events"),  # finish; the events follow, and then:
    "outcome": ("head", "value", "reason", "result_ttl_ms", "used_tokens"),
}

_MARKED = re.compile(
    r'^ *-- @row "(?P<row>\w+)"\n(?P<opening>.*\{)\n(?P<fields>(?: *\w+ = .*,\n)+)(?P<closing> *\})',
    re.MULTILINE,
)
_FIELD = re.compile(r"^(?P<indent> *)(?P<name>\w+) = (?P<value>.*)$", re.MULTILINE)


def row_numbers() -> dict[str, int]:
    """The numbers of all fields and widths, by the names that scripts know them by."""
    fields = {f"{row}_{name}".upper(): at for row, names in ROWS.items() for at, name in enumerate(names)}
    return fields | {f"{row}_WIDTH".upper(): len(names) for row, names in ROWS.items()}


def in_order(script: str) -> str:
    """The same script with the fields of its marked tables in the order of their rows, without their names.

    Raises:
        ValueError: a marked table has other fields than its row.
    """
    return _MARKED.sub(_in_order, script)


def _in_order(marked: re.Match[str]) -> str:
    row = marked["row"]
    values = {field["name"]: field["indent"] + field["value"] for field in _FIELD.finditer(marked["fields"])}
    if sorted(values) != sorted(ROWS[row]):
        raise ValueError(f"a script fills the row {row!r} with other fields: {sorted(values)}")
    lines = (marked["opening"], *(values[name] for name in ROWS[row]), marked["closing"])
    return "\n".join(lines)
