"""Tables that fit: columns shrink, and the least of them go, before a line is too long. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.cells import cell_len
from rich.text import Text

from scheduler.printable import one_line

HEAD_STYLE = "bold bright_white on grey23"
MORE_STYLE = "bright_black"
WIDE = 96
"""From this width on there are two spaces between columns."""

Cell: TypeAlias = Text | str | Callable[[int], Text]
"""A text, or what draws itself in so many columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `least`: to what width it may shrink, None for not at all. `most`: how wide it may become.

    `rank`: the highest goes first where all do not fit; 0 stays.
    """

    title: str
    right: bool = False
    least: int | None = None
    most: int | None = None
    rank: int = 0
    style: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the picture: a line of titles, and its rows.

    `weights` say which rows are kept where not all have room, the heaviest first; without them the first ones
    are. Those that are kept stay in their order. `foot` is a last row.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    weights: Sequence[float] | None = None
    foot: Sequence[Cell] | None = None

    @property
    def height(self) -> int:
        """Lines that it wants, with its titles."""
        return 1 + len(self.rows) + (self.foot is not None)

    def draw(self, *, width: int, height: int | None = None) -> list[Text]:
        """Its lines, each as wide as `width`, no more than `height` of them."""
        left_out = 0
        kept: Sequence[Sequence[Cell]] = self.rows
        foot = [self.foot] if self.foot is not None else []
        if height is not None and self.height > height:
            room = max(0, height - 2 - len(foot))
            if not room and foot:
                foot, room = [], max(0, height - 2)
            left_out = len(self.rows) - room
            kept = self._weightiest(room)
        cells = [*kept, *foot]
        gap = 2 if width >= WIDE else 1
        places, widths = _fit(self.columns, cells, width, gap)
        lines = [
            _line([self.columns[at].title for at in places], self.columns, places, widths, gap, titles=True)
        ]
        lines += [_line([row[at] for at in places], self.columns, places, widths, gap) for row in cells]
        if left_out:
            lines.insert(1 + len(kept), Text(f" … {left_out:,} more", MORE_STYLE))
        for line in lines:
            line.truncate(width, overflow="ellipsis", pad=True)
        lines[0].stylize(HEAD_STYLE)
        return lines if height is None else lines[:height]

    def _weightiest(self, room: int) -> list[Sequence[Cell]]:
        weights = self.weights or [-float(at) for at in range(len(self.rows))]
        by_weight = sorted(range(len(self.rows)), key=lambda at: -weights[at])
        return [self.rows[at] for at in sorted(by_weight[:room])]


def _line(
    cells: Sequence[Cell],
    columns: Sequence[Column],
    places: Sequence[int],
    widths: Sequence[int],
    gap: int,
    *,
    titles: bool = False,
) -> Text:
    line = Text(no_wrap=True)
    for cell, at, width in zip(cells, places, widths, strict=True):
        column = columns[at]
        drawn = cell(width) if callable(cell) else _text(cell, "" if titles else column.style)
        drawn.truncate(width, overflow="ellipsis")
        space = " " * (width - drawn.cell_len)
        line.append(" " * gap if line else " ")
        line.append_text(Text(space) + drawn if column.right else drawn + Text(space))
    return line


def _text(cell: Text | str, style: str) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(one_line(cell), style)


def _fit(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int, gap: int
) -> tuple[list[int], list[int]]:
    """Which columns are shown, and how wide each is."""
    places = list(range(len(columns)))
    natural = [_natural(column, [row[at] for row in rows]) for at, column in enumerate(columns)]
    least = [
        wish if column.least is None else min(wish, column.least)
        for wish, column in zip(natural, columns, strict=True)
    ]
    while sum(least[at] + gap for at in places) > width:
        goes = max(places, key=lambda at: (columns[at].rank, at))
        if columns[goes].rank == 0:
            break
        places.remove(goes)
    widths = {at: natural[at] for at in places}
    while sum(widths.values()) + gap * len(places) > width:
        widest = max(places, key=lambda at: (widths[at] > least[at], widths[at]))
        if widths[widest] <= least[widest]:
            break
        widths[widest] -= 1
    return places, [widths[at] for at in places]


def _natural(column: Column, cells: Sequence[Cell]) -> int:
    if any(callable(cell) for cell in cells):
        return column.most or 0
    longest = max((_text(cell, "").cell_len for cell in cells if not callable(cell)), default=0)
    return min(max(longest, cell_len(column.title)), column.most or longest + cell_len(column.title))
