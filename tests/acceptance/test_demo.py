"""`prompt-scheduler demo` as a newcomer runs it: what it says, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.patience import SOON_S

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="lists processes in /proc")

FEW = ("--prompts", "50")
GUARDS = ("child_guard.py", "supervisor.py")


def start(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scheduler", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), **environ},
    )


def start_and_wait_until_it_runs(tmp_path: Path) -> subprocess.Popen[str]:
    process = start(tmp_path, *FEW, "--delay", "0.5")
    assert process.stdout
    for line in process.stdout:
        if "running  2" in line:
            return process
    raise AssertionError(process.communicate())


def processes_of(tmp_path: Path) -> dict[int, str]:
    """All that have the demo's TMPDIR in their environment or work in it; a server overwrites the former."""
    found = {}
    for one in Path("/proc").iterdir():
        try:
            marked = str(tmp_path) in (one / "environ").read_text(errors="replace")
            if marked or (one / "cwd").readlink().is_relative_to(tmp_path):
                found[int(one.name)] = (one / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    return {pid: command for pid, command in found.items() if command}


def one_of(tmp_path: Path, *words: str) -> int:
    """The process whose command line has these words, and is not the guard of another unless they say so."""
    (pid,) = (
        pid
        for pid, command in processes_of(tmp_path).items()
        if all(word in command for word in words)
        and all(guard in words or guard not in command for guard in GUARDS)
    )
    return pid


def until_all_have_gone(tmp_path: Path) -> None:
    give_up_at = time.monotonic() + SOON_S
    while left := processes_of(tmp_path):
        assert time.monotonic() < give_up_at, left
        time.sleep(0.02)


def test_demo_shows_what_it_promises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    prompts = 100
    with start(tmp_path, "--prompts", str(prompts), "--delay", "0.004") as process:
        out, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, err) == (0, ""), out + err
    lines = out.splitlines()
    verdict = [line for line in lines if line.startswith("ok ")]
    assert verdict == lines[-4:]
    different, shared = prompts * 4 // 5, prompts // 5
    assert f"{prompts} prompts sent, {prompts} answered" in verdict[0]
    assert f"{different} of them different, {different} runs; {shared} duplicates shared one" in verdict[1]
    assert "urgent ones first; mean wait: critical" in verdict[2]
    assert "answers streamed" in verdict[3]
    assert processes_of(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start_and_wait_until_it_runs(tmp_path) as process:
        assert len(processes_of(tmp_path)) == 7, "itself, the server, the worker, the client, who guard them"
        process.send_signal(number)
        _, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, err) == (128 + number, "")
    assert processes_of(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    with start_and_wait_until_it_runs(tmp_path) as process:
        process.kill()
    until_all_have_gone(tmp_path)


@pytest.mark.parametrize(
    ("victim", "told"),
    [
        (("-m arq",), "the worker process ended with 137:"),
        (("demo.client", "child_guard.py"), "the client process ended with -9:"),
        (("-server ",), "no Redis answers at redis://127.0.0.1:"),
    ],
)
def test_the_death_of_a_child_is_told_and_ends_the_demo(
    tmp_path: Path, victim: tuple[str, ...], told: str
) -> None:
    with start_and_wait_until_it_runs(tmp_path) as process:
        os.kill(one_of(tmp_path, *victim), signal.SIGKILL)
        _, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 1
    assert err.startswith(f"prompt-scheduler: {told}"), err
    assert "Traceback" not in err
    assert processes_of(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_the_table_is_live(tmp_path: Path) -> None:
    said = in_a_terminal(tmp_path, *FEW, "--delay", "0.004")
    assert "mean wait" in said
    assert "\x1b[2K" in said, "it is drawn in place"
    assert "▸" in said, "an answer is shown as it streams"


def test_plain_lines_can_be_had_on_a_terminal(tmp_path: Path) -> None:
    said = in_a_terminal(tmp_path, *FEW, "--delay", "0.004", "--plain")
    assert "mean wait \u2502" not in said
    assert "\x1b[2K" not in said


def in_a_terminal(tmp_path: Path, *arguments: str) -> str:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "scheduler", "demo", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    ) as process:
        os.close(theirs)
        said = b"".join(iter(reader(ours), b""))
        assert process.wait(SOON_S) == 0, said
    os.close(ours)
    return said.decode()


def reader(terminal: int) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return os.read(terminal, 65_536)
        except OSError:  # the other side has been closed
            return b""

    return read


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"LLAMA_SERVER": "/nowhere/llama-server"}, "LLAMA_MODEL, which names a model in the GGUF format,"),
        ({"LLAMA_MODEL": "/nowhere/model.gguf"}, "LLAMA_SERVER is not set"),
    ],
)
def test_demo_of_llama_says_in_one_line_what_it_needs(
    tmp_path: Path, environ: dict[str, str], told: str
) -> None:
    none = {"LLAMA_SERVER": "", "LLAMA_MODEL": "", "XDG_CACHE_HOME": str(tmp_path)}
    with start(tmp_path, "--engine", "llama", **{**none, **environ}) as process:
        out, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"prompt-scheduler: {told}")
    assert err.endswith("without both variables, a small model and a server are fetched\n")
    assert err.count("\n") == 1


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    with start(tmp_path, "--prompts", "10") as process:
        _, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 2
    assert "--prompts" in err
