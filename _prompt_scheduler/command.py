"""The script `prompt-scheduler`."""

from __future__ import annotations

from _prompt_scheduler.names import clash, leave


def main() -> None:
    """Run the command line, or say whose `scheduler` or `workers` is in its way."""
    if message := clash():
        leave(message)
    from scheduler.__main__ import main as run  # noqa: PLC0415  only once it is known to be ours

    run()
