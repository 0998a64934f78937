"""The elements of the picture: bars, curves, numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

FULL, EMPTY = "■", "·"
STEPS = "▁▂▃▄▅▆▇█"


def bar(parts: Sequence[tuple[float, str]], *, of: float, width: int) -> Text:
    """A bar of styled amounts, side by side; full at `of`. Any amount above 0 is visible."""
    cells = _cells([amount for amount, _ in parts], of=of, width=width)
    drawn = Text()
    for n, (_, style) in zip(cells, parts, strict=True):
        drawn.append(FULL * n, style)
    return drawn.append(EMPTY * (width - len(drawn)), "bright_black")


def _cells(amounts: Sequence[float], *, of: float, width: int) -> list[int]:
    """How many cells each amount gets: rounded, at least one, and at most `width` in all."""
    cells = [max(1, round(width * amount / of)) if amount > 0 and of > 0 else 0 for amount in amounts]
    while sum(cells) > width:
        cells[cells.index(max(cells))] -= 1
    return cells


def curve(values: Sequence[float], *, width: int, style: str) -> Text:
    """The last values as a curve, scaled to the highest one."""
    shown = values[-width:] if width > 0 else ()
    top = max(shown, default=0.0)
    steps = "".join(
        STEPS[min(len(STEPS) - 1, int(len(STEPS) * value / top))] if top else " " for value in shown
    )
    return Text(steps.rjust(max(0, width)).replace(" ", STEPS[0]), style)


def count(number: int) -> str:
    """A number in five characters: `9,999`, `123k`, `1.2M`."""
    if number < 10_000:
        return f"{number:,}"
    for unit, name in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        value = number / unit
        if value < 999.5:
            return f"{value:.1f}{name}" if value < 9.95 else f"{value:.0f}{name}"
    return f"{number:.0e}"


def rate(per_second: float | None) -> str:
    """A rate per second: `0`, `0.25`, `9.7`, `1,234`; `-` if it is unknown."""
    if per_second is None:
        return "-"
    if per_second == 0 or per_second >= 99.5:
        return f"{per_second:,.0f}"
    return f"{per_second:.2f}" if per_second < 0.95 else f"{per_second:.1f}"


def size(amount: int) -> str:
    """Bytes for people."""
    value, unit = amount / 2**20, "MiB"
    if value >= 1024:
        value, unit = value / 1024, "GiB"
    return f"{value:,.1f} {unit}"
