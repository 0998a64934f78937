"""Shows the progress of a download: a bar at a terminal, else a line now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

REDRAW_S = 0.1
PLAIN_LINE_S = 5.0


@asynccontextmanager
async def progress_shown(shown: Console, label: str, folder: Path, size: int) -> AsyncIterator[None]:
    """During the body, show how much of `size` bytes the files below a folder have."""

    def done() -> int:
        return min(bytes_below(folder), size)

    show = _draw if shown.is_terminal else _write_lines
    task = asyncio.create_task(show(shown, label, done, size))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _draw(shown: Console, label: str, done: Callable[[], int], size: int) -> None:
    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=shown, transient=True, auto_refresh=False) as progress:
        task = progress.add_task(label, total=size)
        while True:
            progress.update(task, completed=done(), refresh=True)
            await asyncio.sleep(REDRAW_S)


async def _write_lines(shown: Console, label: str, done: Callable[[], int], size: int) -> None:
    while True:
        await asyncio.sleep(PLAIN_LINE_S)
        shown.print(f"  {label}: {done() / 1e6:.0f} of {megabytes(size)}")


def megabytes(size: int) -> str:
    """A size in bytes for people: `34 MB`."""
    return f"{size / 1e6:.0f} MB"


def bytes_below(folder: Path) -> int:
    """The size of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total
