"""Takes the whole terminal, redraws when its size changes, and restores it at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live

Draw = Callable[[int, int], RenderableType]


class Screen:
    """Shows the renderable that `draw` makes for a width and a height; `keys` maps keys to callbacks.

    Use it as a context manager, in an event loop. Ctrl-Z restores the terminal as well, until `fg`.
    """

    def __init__(self, shown: Console, draw: Draw, keys: Mapping[str, Callable[[], None]]) -> None:
        self._shown = shown
        self._draw = draw
        self._keys = keys
        self._terminal = ExitStack()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            stack.callback(self._leave)
            loop.add_signal_handler(signal.SIGWINCH, self.redraw)
            loop.add_signal_handler(signal.SIGTSTP, self._suspend)
            self._take()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def redraw(self) -> None:
        """Draw the current state."""
        if self._live is not None:
            self._live.update(self._draw(*self._shown.size), refresh=True)

    def _leave(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGWINCH)
        loop.remove_signal_handler(signal.SIGTSTP)
        self._give_back()

    def _take(self) -> None:
        with ExitStack() as stack:
            if sys.stdin.isatty():
                stack.enter_context(_Keyboard(sys.stdin.fileno(), self._keys))
            self._live = stack.enter_context(Live(console=self._shown, screen=True, auto_refresh=False))
            self._terminal = stack.pop_all()
        self.redraw()

    def _give_back(self) -> None:
        self._live = None
        self._terminal.close()

    def _suspend(self) -> None:
        """Stop, as Ctrl-Z asks. Continues after the signal, when the user types `fg`."""
        loop = asyncio.get_running_loop()
        self._give_back()
        loop.remove_signal_handler(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGTSTP)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        self._take()


class _Keyboard:
    """Reads keys as they are typed, without echo. Ctrl-C and Ctrl-Z remain signals."""

    def __init__(self, fd: int, keys: Mapping[str, Callable[[], None]]) -> None:
        self._fd = fd
        self._keys = keys
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSADRAIN)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        typed = os.read(self._fd, 64).decode(errors="replace")
        if not typed:  # the terminal is gone
            asyncio.get_running_loop().remove_reader(self._fd)
        for key in typed:
            if key in self._keys:
                self._keys[key]()
