"""Runs a command that must not outlive the process that started it.

    usage: python -I -S child_guard.py COMMAND…        standard input: a pipe that the starter holds open

When the pipe closes, whichever way the starter has gone, the command and all that it started are ended: asked
first, killed after some seconds. Otherwise this ends with the command, and with its exit code. It is run by
its path, in an interpreter without site packages, so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 5.0


def run_guarded(command: list[str]) -> int:
    """Run a command until it ends or standard input does; its exit code."""
    # In a group of its own: Ctrl-C in the terminal is for the starter to hear, and to act on.
    child = subprocess.Popen(  # noqa: S603  the starter's own command
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509  there is no other thread yet
    )
    threading.Thread(target=_end_with_stdin, args=(child,), daemon=True).start()
    code = child.wait()
    _signal(child, signal.SIGKILL)  # what it left behind in its group
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """Linux: have the kernel end the command if this process itself is killed."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  needed here alone

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))


def _end_with_stdin(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    _signal(child, signal.SIGTERM)
    time.sleep(GRACE_S)
    _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # an ignored signal would be ignored by the command as well
    sys.exit(run_guarded(sys.argv[1:]))
