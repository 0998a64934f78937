"""Tables that fit: columns shrink, and the least important ones go, before a line is too long. Pure."""

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
"""From this width on, columns are two spaces apart."""

Cell: TypeAlias = Text | str | Callable[[int], Text]
"""A text, or a function that draws the cell for a width."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    title: str
    right: bool = False
    """Whether it is aligned to the right."""
    least: int | None = None
    """The width that it may shrink to; None if it may not shrink."""
    most: int | None = None
    """The width that it may grow to."""
    rank: int = 0
    """If not all columns fit, those with the highest rank go first; 0 stays."""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the picture: a line of titles, and its rows."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    weights: Sequence[float] | None = None
    """If not all rows fit, the heaviest are shown, in their order; without weights, the first."""
    foot: Sequence[Cell] | None = None
    """A last row."""

    @property
    def height(self) -> int:
        """How many lines it needs, with its titles."""
        return 1 + len(self.rows) + (self.foot is not None)

    def draw(self, *, width: int, height: int | None = None) -> list[Text]:
        """Its lines, each as wide as `width`, at most `height` of them."""
        rows, foot = self._that_fit(height)
        left_out = len(self.rows) - len(rows)
        cells = [*rows, *foot]
        gap = 2 if width >= WIDE else 1
        shown, widths = _fit(self.columns, cells, width, gap)
        titles = [self.columns[at].title for at in shown]
        lines = [_line(titles, self.columns, shown, widths, gap, titles=True)]
        lines += [_line([row[at] for at in shown], self.columns, shown, widths, gap) for row in cells]
        if left_out:
            lines.insert(1 + len(rows), Text(f" … {left_out:,} more", MORE_STYLE))
        for line in lines:
            line.truncate(width, overflow="ellipsis", pad=True)
        lines[0].stylize(HEAD_STYLE)
        return lines if height is None else lines[:height]

    def _that_fit(self, height: int | None) -> tuple[Sequence[Sequence[Cell]], list[Sequence[Cell]]]:
        """The rows to show, and the foot if there is space for it."""
        foot = [self.foot] if self.foot is not None else []
        if height is None or self.height <= height:
            return self.rows, foot
        # The titles and the line that counts the others need two.
        space = max(0, height - 2 - len(foot))
        if not space and foot:
            foot, space = [], max(0, height - 2)
        return self._heaviest(space), foot

    def _heaviest(self, count: int) -> list[Sequence[Cell]]:
        weights = self.weights or [-float(at) for at in range(len(self.rows))]
        by_weight = sorted(range(len(self.rows)), key=lambda at: -weights[at])
        return [self.rows[at] for at in sorted(by_weight[:count])]


def _line(
    cells: Sequence[Cell],
    columns: Sequence[Column],
    shown: Sequence[int],
    widths: Sequence[int],
    gap: int,
    *,
    titles: bool = False,
) -> Text:
    line = Text(no_wrap=True)
    for cell, at, width in zip(cells, shown, widths, strict=True):
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
    """The indexes of the columns that are shown, and their widths."""
    shown = list(range(len(columns)))
    natural = [_natural(column, [row[at] for row in rows]) for at, column in enumerate(columns)]
    least = [
        full if column.least is None else min(full, column.least)
        for full, column in zip(natural, columns, strict=True)
    ]
    while sum(least[at] + gap for at in shown) > width:
        goes = max(shown, key=lambda at: (columns[at].rank, at))
        if columns[goes].rank == 0:
            break
        shown.remove(goes)
    widths = {at: natural[at] for at in shown}
    while sum(widths.values()) + gap * len(shown) > width:
        widest = max(shown, key=lambda at: (widths[at] > least[at], widths[at]))
        if widths[widest] <= least[widest]:
            break
        widths[widest] -= 1
    return shown, [widths[at] for at in shown]


def _natural(column: Column, cells: Sequence[Cell]) -> int:
    if any(callable(cell) for cell in cells):
        return column.most or 0
    longest = max((_text(cell, "").cell_len for cell in cells if not callable(cell)), default=0)
    return min(max(longest, cell_len(column.title)), column.most or longest + cell_len(column.title))
