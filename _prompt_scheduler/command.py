"""The script `prompt-scheduler`."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line, or report another package called `scheduler` or `workers`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_at_once)
    from _prompt_scheduler.names import clash, leave  # noqa: PLC0415  after the handler: the import takes a moment

    if message := clash():
        leave(message)
    from scheduler.__main__ import main as run  # noqa: PLC0415  after the check

    run()


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C during the imports, which take a moment."""
    os._exit(128 + number)
