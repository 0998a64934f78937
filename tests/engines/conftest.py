"""Real servers with tiny models of random weights, one of each kind for the whole run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

from scheduler.redis_server.supervisor import free_port

pytest.register_assert_rewrite("workers.contract")

ENGINES = Path(__file__).parents[2] / "examples" / "engines"
MAKE_TINY_GGUF = ENGINES / "make_tiny_gguf.py"
MAKE_TINY_HF = ENGINES / "make_tiny_hf.py"
SERVE_VLLM = ENGINES / "serve_vllm.sh"
START_TIMEOUT_S = 30.0
VLLM_START_TIMEOUT_S = 300.0  # it imports for half a minute, and longer on a machine that is busy
WARM_UP_TIMEOUT_S = 120.0
ENGINE_NICENESS = 15
VLLM_CONTEXT = 4096
VLLM_RUNS = 16
SLOT_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A running server. `slot_tokens` is what the context of each of its `slots` holds."""

    base_url: str
    slots: int
    slot_tokens: int


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A running server. `context` is the most tokens of a prompt and its answer, `runs` what runs at once."""

    base_url: str
    context: int = VLLM_CONTEXT
    runs: int = VLLM_RUNS


def cached(*path: str) -> Path:
    """A path in the cache of what `make` has got."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache.joinpath("prompt-scheduler", *path)


def missing(what: str) -> NoReturn:
    """Skip for want of something; fail where it is demanded."""
    if os.environ.get("CI") or os.environ.get("REQUIRE_ENGINES"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def llama_server_binary() -> Path:
    """Where llama-server is: the variable LLAMA_SERVER, the PATH, or what `make test-engines` has built."""
    if named := os.environ.get("LLAMA_SERVER"):
        if not os.access(named, os.X_OK):
            pytest.fail(f"LLAMA_SERVER names {named}, which is no program that can be run")
        return Path(named)
    built = cached("llama-server", "bin", "llama-server")
    found = shutil.which("llama-server") or (str(built) if os.access(built, os.X_OK) else None)
    if found:
        return Path(found)
    missing("no llama-server: run `make test-engines`, which builds one, or name yours in LLAMA_SERVER")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of half a megabyte."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    command = [sys.executable, str(MAKE_TINY_GGUF), str(path), "--context", str(SLOT_TOKENS)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.fail(f"the tiny model could not be made: {made.stderr.strip()}")
    return path


StartServer = Callable[..., LlamaServer]


@pytest.fixture(scope="session")
def start_llama_server(
    llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    """Start servers with further flags; all are killed when the run ends."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, slots: int, slot_tokens: int) -> LlamaServer:
        port = free_port()
        log = tmp_path_factory.mktemp("llama-server") / "log"
        # --poll 0: its threads must not spin on the cores that the tests need.
        command = [
            *(str(llama_server_binary), "-m", str(tiny_model), "--alias", "tiny"),
            *("--host", "127.0.0.1", "--port", str(port), "-c", str(slots * slot_tokens), "-np", str(slots)),
            *("-t", "2", "--poll", "0", "--metrics", "--no-ui", *flags),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        processes.append(process)
        server = LlamaServer(f"http://127.0.0.1:{port}", slots, slot_tokens)
        wait_until_ready("llama-server", server.base_url, process, log, START_TIMEOUT_S)
        return server

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def llama_server(start_llama_server: StartServer) -> LlamaServer:
    """The server that most tests share. To fill one of its contexts takes it far longer than to cancel."""
    return start_llama_server(slots=4, slot_tokens=SLOT_TOKENS)


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python beside vLLM: the variable VLLM_PYTHON, or the one that `make test-engines` has made."""
    if named := os.environ.get("VLLM_PYTHON"):
        if not os.access(named, os.X_OK):
            pytest.fail(f"VLLM_PYTHON names {named}, which is no program that can be run")
        return Path(named)
    made = cached("vllm", "bin", "python")
    if os.access(made, os.X_OK):
        return made
    missing("no vLLM: run `make test-engines`, which installs it, or name the Python of yours in VLLM_PYTHON")


@pytest.fixture(scope="session")
def prometheus_binary() -> Path:
    """Where Prometheus is: the variable PROMETHEUS, the PATH, or what `make test-engines` has got.

    It comes from Debian's packages: skips where there is no apt-get.
    """
    got = cached("prometheus", "bin", "prometheus")
    for named in (os.environ.get("PROMETHEUS"), shutil.which("prometheus"), str(got)):
        if named and os.access(named, os.X_OK):
            return Path(named)
    if shutil.which("apt-get") is None:
        pytest.skip("no Prometheus, and no apt-get to get it with: name yours in PROMETHEUS")
    missing("no Prometheus: run `make test-engines`, which gets one, or name yours in PROMETHEUS")


@pytest.fixture(scope="session")
def promtool(prometheus_binary: Path) -> Path:
    """The program that checks rules and metrics; it comes with Prometheus."""
    beside = prometheus_binary.with_name("promtool")
    return beside if beside.exists() else Path(shutil.which("promtool") or pytest.fail("no promtool"))


@pytest.fixture(scope="session")
def vllm_server(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A server with priority scheduling and tools."""
    folder = tmp_path_factory.mktemp("vllm")
    model, log = folder / "tiny", folder / "log"
    made = subprocess.run(
        [str(vllm_python), str(MAKE_TINY_HF), str(model)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.fail(f"the tiny model could not be made: {made.stderr.strip()}")
    port = free_port()
    command = ["sh", str(SERVE_VLLM), str(vllm_python), str(model), str(port)]
    command += ["--max-model-len", str(VLLM_CONTEXT)]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    server = VllmServer(f"http://127.0.0.1:{port}")
    try:
        wait_until_ready("vLLM", server.base_url, process, log, VLLM_START_TIMEOUT_S)
        _put_the_front_end_first(process)
        _warm_up(server)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its engine is a process of its own
        process.wait()


def wait_until_ready(
    name: str, base_url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> None:
    give_up_at = time.monotonic() + timeout_s
    with httpx.Client(base_url=base_url, timeout=2.0, trust_env=False) as client:
        while time.monotonic() < give_up_at:
            if process.poll() is not None:
                pytest.fail(f"{name} ended with {process.returncode}:\n{_tail(log)}")
            try:
                if client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    pytest.fail(f"{name} was not ready within {timeout_s:g} s:\n{_tail(log)}")


def _put_the_front_end_first(server: subprocess.Popen[bytes]) -> None:
    """Lower the priority of vLLM's engine, whose processes spin and take all of a small machine.

    Its front end then answers while the engine is busy, as it does on a machine with a core for each.
    """
    for status in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            process, thread = int(status.parts[2]), int(status.parts[4])
            if int(fields[2]) == server.pid and process != server.pid:
                os.setpriority(os.PRIO_PROCESS, thread, ENGINE_NICENESS)


def _warm_up(server: VllmServer) -> None:
    """The first full step of an engine can take seconds, in which it hardly listens."""
    crowd = {"model": "tiny", "prompt": ["x"] * server.runs, "max_tokens": 4, "ignore_eos": True}
    httpx.post(
        f"{server.base_url}/v1/completions", json=crowd, timeout=WARM_UP_TIMEOUT_S, trust_env=False
    ).raise_for_status()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
