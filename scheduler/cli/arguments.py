"""Parses arguments: priorities, durations, pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

import typer

from scheduler.model import Priority

_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|min|h|d)?")
_SECONDS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_priority(text: str | int) -> int:
    """`7` or `high`."""
    name = str(text).strip().upper()
    if name in Priority.__members__:
        return int(Priority[name])
    if re.fullmatch(r"[0-9]", name):
        return int(name)
    names = ", ".join(f"{one.name.lower()} ({int(one)})" for one in Priority)
    raise typer.BadParameter(f"{text!r} is not a priority; give 0 to 9 or a name: {names}")


def parse_duration(text: str | float) -> float:
    """`90`, `1.5s`, `2m`, `1h`: seconds."""
    found = _DURATION.fullmatch(str(text).strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a duration; give seconds, or 500ms, 30s, 5m, 2h, 1d")
    return float(found[1]) * _SECONDS[found[2]]


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """Each is `key=value`. The value may contain equals signs."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise typer.BadParameter(f"{text!r} is not a pair; give KEY=VALUE")
        pairs[key.strip()] = value
    return pairs


PriorityOption = Annotated[
    int | None,
    typer.Option(
        "--priority",
        "-p",
        parser=parse_priority,
        metavar="0-9|NAME",
        help="Higher is more urgent: background, low, normal, high, critical, or 0 to 9.",
    ),
]
TenantOption = Annotated[str | None, typer.Option(help="Tenant that the job belongs to.")]
