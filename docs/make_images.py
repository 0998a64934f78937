"""Makes docs/images/demo.svg: the demo's table half-way through a real run.

Run it from a checkout: python docs/make_images.py
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

from rich.console import Console, RenderableType

from scheduler.cli.demo import command, view

IMAGES = Path(__file__).parent / "images"
WIDTH = 80


def watch_demo() -> list[tuple[int, RenderableType]]:
    """Run the demo; return all that it drew, each with the number of jobs that were done."""
    drawn: list[tuple[int, RenderableType]] = []
    draw = view.draw

    def keep(snapshot: view.Snapshot) -> RenderableType:
        picture = draw(snapshot)
        drawn.append((len(snapshot.done), picture))
        return picture

    view.draw = keep
    unseen = Console(force_terminal=True, width=WIDTH, file=io.StringIO())
    if not asyncio.run(command.perform(command.Show(), unseen)):
        raise SystemExit("the demo did not keep its promises; see `make demo`")
    return drawn


def main() -> None:
    """Make the images."""
    drawn = watch_demo()
    last = drawn[-1][0]
    half = next(picture for done, picture in drawn if done >= last * 0.4)
    recorder = Console(record=True, width=WIDTH, file=io.StringIO())
    recorder.print(half)
    IMAGES.mkdir(exist_ok=True)
    recorder.save_svg(str(IMAGES / "demo.svg"), title="make demo")


if __name__ == "__main__":
    main()
