"""A real llama-server with a tiny model of random weights, one for the whole run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

pytest.register_assert_rewrite("workers.contract")

MAKE_TINY_GGUF = Path(__file__).parents[2] / "examples" / "engines" / "make_tiny_gguf.py"
START_TIMEOUT_S = 30.0
SLOT_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A running server. `slot_tokens` is what the context of each of its `slots` holds."""

    base_url: str
    slots: int
    slot_tokens: int


@pytest.fixture(scope="session")
def llama_server_binary() -> Path:
    """Where llama-server is: the variable LLAMA_SERVER, the PATH, or what `make test-engines` has built."""
    if named := os.environ.get("LLAMA_SERVER"):
        if not os.access(named, os.X_OK):
            pytest.fail(f"LLAMA_SERVER names {named}, which is no program that can be run")
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache / "prompt-scheduler" / "llama-server" / "bin" / "llama-server"
    found = shutil.which("llama-server") or (str(built) if os.access(built, os.X_OK) else None)
    if found:
        return Path(found)
    missing = "no llama-server: run `make test-engines`, which builds one, or name yours in LLAMA_SERVER"
    if os.environ.get("CI") or os.environ.get("REQUIRE_ENGINES"):
        pytest.fail(missing)
    pytest.skip(missing)


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
        port = _free_port()
        log = tmp_path_factory.mktemp("llama-server") / "log"
        # --poll 0: its threads must not spin on the cores that the tests need.
        command = [
            *(str(llama_server_binary), "-m", str(tiny_model), "--alias", "tiny"),
            *("--host", "127.0.0.1", "--port", str(port), "-c", str(slots * slot_tokens), "-np", str(slots)),
            *("-t", "2", "--poll", "0", "--cache-ram", "0", "--metrics", "--no-ui", *flags),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        processes.append(process)
        server = LlamaServer(f"http://127.0.0.1:{port}", slots, slot_tokens)
        _wait_until_ready(server, process, log)
        return server

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def llama_server(start_llama_server: StartServer) -> LlamaServer:
    """The server that most tests share. To fill one of its contexts takes it far longer than to cancel."""
    return start_llama_server(slots=4, slot_tokens=SLOT_TOKENS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(server: LlamaServer, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(base_url=server.base_url, timeout=2.0, trust_env=False) as client:
        while time.monotonic() < give_up_at:
            if process.poll() is not None:
                pytest.fail(f"llama-server ended with {process.returncode}:\n{_tail(log)}")
            try:
                if client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    pytest.fail(f"llama-server was not ready within {START_TIMEOUT_S:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
