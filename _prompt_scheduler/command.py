"""The script `prompt-scheduler`."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line, or say whose `scheduler` or `workers` is in its way."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_at_once)
    from _prompt_scheduler.names import clash, leave  # noqa: PLC0415  it imports more than this does

    if message := clash():
        leave(message)
    from scheduler.__main__ import main as run  # noqa: PLC0415  only once it is known to be ours

    run()


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while the packages are still being imported, which takes a moment."""
    os._exit(128 + number)
