"""The small process between a private Redis server and its users.

It starts the server as its child and stops it when the last user has gone, however that ended: every user has
a connection to this process, which the kernel closes even for a killed one. `embedded.py` runs this file by
its path, in an interpreter without site packages, so it imports only the standard library.

    usage: python -I -S supervisor.py BINARY FOLDER shared|private        standard input: the first user

A user reads one line of JSON, `{"port": …}`, and leaves by shutting down its side. Then this process closes
the connection; for the last user it ends the server before that. In a shared folder `server.json` names the
socket for further users, and `server.lock` is held while a server may write there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

HOST = "127.0.0.1"
STATE_FILE = "server.json"
LOCK_FILE = "server.lock"
LOG_FILE = "server.log"
ANSWER_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 15.0
PORT_ATTEMPTS = 5

Server: TypeAlias = "subprocess.Popen[bytes]"


class StartError(Exception):
    """The server could not be started; the log says why."""


def supervise(
    binary: str, folder: Path, *, shared: bool, port: int, first_user: socket.socket, signals: socket.socket
) -> None:
    """Run a server in `folder` until it ends or has no users. Removes a private folder afterwards.

    The server listens on `port` if that is free; 0: on any. Numbers of signals arrive on `signals`.

    Raises:
        StartError: the folder is in use, or the server did not start.
    """
    lock = _hold_lock(folder)
    _clean_up_after_killed(folder / STATE_FILE)
    temporary = [] if shared else [folder]
    server: Server | None = None
    listener: socket.socket | None = None
    users = {first_user}
    try:
        ports = _first(port)
        server, port = launch(
            binary, folder, persistent=shared, keep_open=lock, pick_port=lambda: next(ports)
        )
        if shared:
            temporary.append(Path(tempfile.mkdtemp(prefix="prompt-scheduler-")))
            listener = _listen(folder, temporary[-1] / "users.sock")
        _serve_users(server, users, listener, signals, json.dumps({"port": port}).encode() + b"\n")
    finally:
        (folder / STATE_FILE).unlink(missing_ok=True)
        if listener:
            listener.close()
        if server is not None:
            _stop(server, saves=shared)
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _hold_lock(folder: Path) -> int:
    """Wait for a server that is about to end, then keep others from starting one in this folder."""
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    give_up_at = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise StartError(
                    f"{folder} is in use by a server that cannot be reached from here; "
                    "stop it, or give another data_dir"
                ) from None
            time.sleep(0.01)
        else:
            return lock


def _clean_up_after_killed(state: Path) -> None:
    """Remove the socket that a killed predecessor left."""
    try:
        stale = Path(json.loads(state.read_text(encoding="utf-8"))["socket"])
        stale.unlink()
        stale.parent.rmdir()
    except (OSError, ValueError, LookupError, TypeError):
        return


def launch(
    binary: str,
    folder: Path,
    *,
    persistent: bool,
    keep_open: int | None = None,
    pick_port: Callable[[], int] | None = None,
) -> tuple[Server, int]:
    """Start the server and wait until it answers; try another port if this one was taken meanwhile.

    The server inherits `keep_open`, so that a lock on it outlives this process.

    Raises:
        StartError: it ended, or did not answer in time.
    """
    for _ in range(PORT_ATTEMPTS):
        port = (pick_port or free_port)()
        log_end = _size(folder / LOG_FILE)
        server = _spawn(binary, folder, port, persistent=persistent, keep_open=keep_open)
        try:
            if _wait_until_ready(server, port):
                return server, port
        except BaseException:
            _stop(server, saves=persistent)
            raise
        if b"in use" not in _tail(folder / LOG_FILE, log_end):
            raise StartError(f"{binary} ended with exit status {server.returncode}")
    raise StartError(f"no free port on {HOST} after {PORT_ATTEMPTS} attempts")


def _spawn(binary: str, folder: Path, port: int, *, persistent: bool, keep_open: int | None) -> Server:
    options = {
        "bind": HOST,
        "port": str(port),
        "daemonize": "no",
        "save": "",
        "appendonly": "yes" if persistent else "no",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    with (folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(  # noqa: S603  the caller chose this binary
            [binary, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=() if keep_open is None else (keep_open,),
            preexec_fn=_end_with_parent,  # noqa: PLW1509  this process has one thread
        )


def _end_with_parent() -> None:
    """Linux: have the kernel end the server if this process is killed."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  needed here alone

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))


def _first(port: int) -> Iterator[int]:
    """The wanted port first, if any, then free ones."""
    if port:
        yield port
    while True:
        yield free_port()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Server, port: int) -> bool:
    """Whether the server takes commands. Loading a long append-only file takes a while."""
    give_up_at = time.monotonic() + ANSWER_TIMEOUT_S
    while server.poll() is None:
        info = _info(port)
        if info.get("process_id") == str(server.pid):
            if info.get("loading") == "0":
                return True
            give_up_at = time.monotonic() + ANSWER_TIMEOUT_S
        if time.monotonic() > give_up_at:
            raise StartError(f"no answer on {HOST}:{port} within {ANSWER_TIMEOUT_S:.0f} s")
        time.sleep(0.002)
    return False


def _info(port: int) -> dict[str, str]:
    """The reply to INFO; empty without an answer."""
    try:
        with (
            socket.create_connection((HOST, port), timeout=1.0) as connection,
            connection.makefile("rb") as reply,
        ):
            connection.sendall(b"*1\r\n$4\r\nINFO\r\n")
            size = int(reply.readline().removeprefix(b"$"))
            text = reply.read(size).decode(errors="replace")
    except (OSError, ValueError):
        return {}
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _listen(folder: Path, address: Path) -> socket.socket:
    """Open the socket for further users; not beside the data: that path may be too long for a socket."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(address))
    except OSError as error:
        listener.close()
        raise StartError(
            f"no socket at {address} ({error}); set TMPDIR to a folder with a short path"
        ) from None
    listener.listen()
    state = folder / f"{STATE_FILE}.new"
    state.write_text(json.dumps({"socket": str(address), "supervisor_pid": os.getpid()}), encoding="utf-8")
    state.replace(folder / STATE_FILE)
    return listener


def _serve_users(
    server: Server,
    users: set[socket.socket],
    listener: socket.socket | None,
    signals: socket.socket,
    greeting: bytes,
) -> None:
    """Greet users and let them leave; return when the last one leaves, the server ends or SIGTERM arrives.

    The last user stays in `users`: its connection closes with this process, when the server is down.
    """
    with selectors.DefaultSelector() as selector:

        def admit(user: socket.socket) -> None:
            users.add(user)
            selector.register(user, selectors.EVENT_READ)
            with contextlib.suppress(OSError):  # it has gone: its connection will close
                user.sendall(greeting)

        selector.register(signals, selectors.EVENT_READ)
        if listener:
            selector.register(listener, selectors.EVENT_READ)
        for user in tuple(users):
            admit(user)
        while server.poll() is None:
            for key, _ in selector.select():
                ready = key.fileobj
                if ready is signals:
                    if signal.SIGTERM in signals.recv(4096):
                        return
                elif listener and ready is listener:
                    admit(listener.accept()[0])
                elif isinstance(ready, socket.socket):
                    if len(users) == 1:
                        return
                    selector.unregister(ready)
                    users.remove(ready)
                    ready.close()


def _wake_on_signals() -> socket.socket:
    """Make a socket that gets the numbers of SIGTERM and SIGCHLD. Ignores Ctrl-C and a closed terminal."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach())
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return reader


def _stop(server: Server, *, saves: bool) -> None:
    """End the server; kill it if there is nothing to save."""
    if saves:
        server.terminate()
    else:
        server.kill()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def main(arguments: list[str]) -> None:
    """Leave the user's process group and family, so that its signals and its end do not reach the server."""
    binary, folder, kind, port = arguments
    if os.fork():
        os._exit(0)
    os.setsid()
    first_user = socket.socket(fileno=sys.stdin.fileno())
    signals = _wake_on_signals()
    try:
        supervise(
            binary,
            Path(folder),
            shared=kind == "shared",
            port=int(port),
            first_user=first_user,
            signals=signals,
        )
    except StartError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
