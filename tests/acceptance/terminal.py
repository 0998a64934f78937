"""A terminal in which a test runs a program and types."""

from __future__ import annotations

import codecs
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from typing import Self

from tests.patience import SOON_S

CURSOR_SHOWN = "\x1b[?25h"
TAKEN, GIVEN_BACK = "\x1b[?1049h", "\x1b[?1049l"
"""What a program writes when it takes the whole screen, and when it gives it back."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_POLL_S = 0.05


class Terminal:
    """A command at a terminal of its own. `text` is everything that was written there."""

    def __init__(self, *command: str, columns: int = 80, lines: int = 24, **environ: str | None) -> None:
        self._ours, self._theirs = os.openpty()
        _set_size(self._theirs, columns, lines)
        self._modes = termios.tcgetattr(self._theirs)
        # The tests may have been started at a terminal of some size and taste.
        own = {"COLUMNS": None, "LINES": None, "NO_COLOR": None}
        merged = {**os.environ, **own, "TERM": "xterm-256color", **environ}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={name: value for name, value in merged.items() if value is not None},
        )
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._matched = 0  # how much of the text without colours `expect` has consumed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    @property
    def rest(self) -> str:
        """The text behind the last match of `expect`, without colours."""
        return _COLOURS.sub("", self.text)[self._matched :]

    def resize(self, columns: int, lines: int) -> None:
        """Change the size; the kernel tells the program."""
        _set_size(self._ours, columns, lines)

    def type(self, keys: str) -> None:
        """Press some keys; "\\x03" is Ctrl-C."""
        os.write(self._ours, keys.encode())

    def until(self, text: str) -> str:
        """Read until a text has been written; everything written by then."""
        while text not in self.text:
            assert self._read(), f"it ended without {text!r}: {self.text!r}"
        return self.text

    def expect(self, pattern: str) -> str:
        """Read until a pattern appears behind the last match; the text up to its end, without colours."""
        while not (found := re.search(pattern, self.rest, re.DOTALL)):
            assert self._read(), f"it ended without {pattern!r}; there is: {self.rest[-3000:]!r}"
        read = self.rest[: found.end()]
        self._matched += found.end()
        return read

    def end(self) -> tuple[int, str]:
        """Read to the program's end: its exit code, and everything written."""
        while self._read():
            pass
        return self.process.wait(SOON_S), self.text

    def given_back(self) -> int:
        """Read to the end of a program that had the whole screen: its exit code. All is as it was before."""
        self.expect(re.escape(CURSOR_SHOWN) + ".*" + re.escape(GIVEN_BACK))
        code, _ = self.end()
        assert termios.tcgetattr(self._theirs) == self._modes
        return code

    def _read(self) -> bool:
        """Read what comes next; false once the program has ended and everything is read."""
        give_up_at = time.monotonic() + SOON_S
        while True:
            ended = self.process.poll() is not None
            if select.select([self._ours], [], [], 0 if ended else _POLL_S)[0]:
                self.text += self._decoder.decode(os.read(self._ours, 65_536))
                return True
            if ended:
                return False
            assert time.monotonic() < give_up_at, f"nothing more is written: {self.text[-3000:]!r}"


def _set_size(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
