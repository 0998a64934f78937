"""`prompt-scheduler`, also as `python -m scheduler`."""

from __future__ import annotations

import io
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
    except KeyboardInterrupt:  # importing it takes a moment
        raise SystemExit(130) from None

    if isinstance(sys.stdout, io.TextIOWrapper):
        # an answer may hold what the terminal's encoding cannot say
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="prompt-scheduler")


if __name__ == "__main__":
    main()
