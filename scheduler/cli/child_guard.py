"""Runs a command that must not outlive the process that started it, its parent.

    usage: python -I -S child_guard.py COMMAND…        standard input: a pipe that the parent keeps open

When the pipe closes, however the parent has ended, the command and its children are terminated, and killed
after some seconds. Otherwise the guard ends with the command, and with its exit code. It is run by its path,
in an interpreter without site packages, so it imports only the standard library.
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
    """Run a command until it ends, or standard input does. Returns its exit code."""
    # In a process group of its own: Ctrl-C in the terminal is for the parent to handle.
    child = subprocess.Popen(  # noqa: S603  the parent's own command
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509  there is no other thread yet
    )
    threading.Thread(target=_end_with_stdin, args=(child,), daemon=True).start()
    code = child.wait()
    _signal(child, signal.SIGKILL)  # processes that it left behind in its group
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """On Linux: have the kernel kill the command if the guard itself is killed."""
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
        signal.signal(number, lambda *_: None)  # with SIG_IGN the command would ignore it as well
    sys.exit(run_guarded(sys.argv[1:]))
