"""`prompt-scheduler`, also as `python -m scheduler`."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; its packages are an extra."""
    if find_spec("typer") is None or find_spec("rich") is None:
        print(  # noqa: T201  all that can be said without them
            "prompt-scheduler: the command line needs more packages: pip install 'prompt-scheduler[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        from scheduler.cli import app  # noqa: PLC0415  an extra
        from scheduler.cli.output import prepare_streams  # noqa: PLC0415  the same
    except KeyboardInterrupt:  # importing it takes a moment
        raise SystemExit(130) from None

    prepare_streams()
    heeds = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    try:
        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        app(prog_name="prompt-scheduler")
    except KeyboardInterrupt:  # before the command has begun
        raise SystemExit(130) from None
    finally:
        if heeds:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own end is not quiet about Ctrl-C


if __name__ == "__main__":
    main()
