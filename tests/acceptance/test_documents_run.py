"""Every Python and shell block of the README and the documentation runs, and prints what the page shows.

A page is one test. Its blocks run in order and share their names. They meet a real server, in the place of
`redis://localhost:6379`, and a worker process with the routes `chat`, `vectors` and `ranks`. Python blocks
may `await`, and `client` is an open `AsyncClient` in each. One that begins with the name of a file
(`# my_package/worker.py`) is that file: it is imported, or run by pytest if it is a test. Shell blocks share
a folder; a plain command of ours runs inside the test, and says yes where it asks. The ids that pages use are
there.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from scheduler import AsyncClient, Client, JobFailed
from scheduler.cli.app import app
from scheduler.redis_server.embedded import EmbeddedServer
from tests.acceptance.conftest import wait_for_line
from tests.documents import PAGES, Block, blocks, commands, matches
from tests.patience import SOON_S

LOCAL = "redis://localhost:6379"
DELAYED = "01a2086a-21e2-700b-95b3-25ef702fdc8c"
DEAD = "01a2086a-1277-74d4-9c0c-0855e4085f25"
FILE = re.compile(r"# (?P<path>[\w/]+\.py)\n")
OURS = re.compile(r"prompt-scheduler [^|<>$`;&]*(\s#.*)?")
KINDS = {"chat": "generate", "vectors": "embedding", "ranks": "rerank"}
ECHO = {"backend": "echo", "options": {"fail_text": "forbidden"}}
ROUTES = json.dumps({name: {"kind": kind, "endpoints": [ECHO]} for name, kind in KINDS.items()})


@pytest.fixture(scope="module")
def server(valkey_binary: Path) -> Iterator[str]:
    """The URL of a server that has a worker process with these routes."""
    with EmbeddedServer(binary=valkey_binary) as embedded:
        worker = subprocess.Popen(
            [sys.executable, "-m", "arq", "scheduler.WorkerSettings"],
            env={**os.environ, "SCHEDULER_REDIS_URL": embedded.url, "SCHEDULER_ROUTES": ROUTES},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for_line(worker, " serves ")
            _add_jobs(embedded.url)
            yield embedded.url
        finally:
            worker.kill()
            worker.communicate()


def _add_jobs(url: str) -> None:
    with Client(url) as client:
        client.enqueue("Sum up the week.", job_id=DELAYED, tenant="acme", dedup_key="week-23", delay_s=3600)
        dead = client.enqueue("a forbidden word", job_id=DEAD)
        with pytest.raises(JobFailed):
            dead.result(timeout_s=SOON_S)


class Reader:
    """Runs the blocks of one page."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._names: dict[str, Any] = {"__name__": "documents"}
        self._loop = asyncio.Runner()
        self._client = AsyncClient()

    def __enter__(self) -> Reader:
        self._loop.run(self._client.connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self._client.aclose())
        self._loop.close()

    def run(self, block: Block) -> None:
        """Run one block.

        Raises:
            AssertionError: it failed, or did not print what the page shows.
        """
        if file := FILE.match(block.code):
            self._add_file(Path(file["path"]), block.code)
        elif "def test_" in block.code:
            self._add_file(Path("test_block.py"), block.code)
        elif block.language == "python":
            _compare(self._python(block), block.output)
        else:
            for command, shown in commands(block):
                _compare(self._command(command, check=shown is None), shown)

    def _python(self, block: Block) -> str:
        source = "\n" * (block.line - 1) + block.code
        code = compile(source, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        self._names["client"] = self._client
        with redirect_stdout(io.StringIO()) as printed:
            done = eval(code, self._names)  # noqa: S307  the project's own documents
            if inspect.iscoroutine(done):
                self._loop.run(asyncio.wait_for(done, SOON_S))
        return printed.getvalue()

    def _add_file(self, path: Path, code: str) -> None:
        whole = self._folder / path
        whole.parent.mkdir(exist_ok=True)
        whole.write_text(code, encoding="utf-8")
        if path.name.startswith("test_"):
            options = "-q -p no:cacheprovider -o asyncio_mode=auto"
            self._shell(f"{sys.executable} -m pytest {options} {path}", check=True)
        else:
            module = ".".join(path.with_suffix("").parts)
            self._shell(f"{sys.executable} -W error -c 'import {module}'", check=True)

    def _command(self, command: str, *, check: bool) -> str:
        lines = [line for line in command.splitlines() if line.strip()]
        if all(OURS.fullmatch(line) for line in lines):
            return "".join(self._ours(line, check=check) for line in lines)
        return self._shell(command, check=check)

    def _ours(self, line: str, *, check: bool) -> str:
        _, *words = shlex.split(line, comments=True)
        done = CliRunner().invoke(app, [*words, *yes(words)])
        assert done.exit_code == 0 or not check, f"{line}\nexits with {done.exit_code}:\n{done.output}"
        return done.output

    def _shell(self, command: str, *, check: bool) -> str:
        process = subprocess.Popen(
            ["bash", *(["-e"] if check else []), "-uo", "pipefail", "-c", command],
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=SOON_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0 or not check, f"{command}\nexits with {process.returncode}:\n{output}"
        return output


def yes(words: list[str]) -> list[str]:
    """The option that answers what a command would ask, if it asks."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    return ["--yes"] if any("--yes" in param.opts for param in command.params) else []


def _compare(printed: str, shown: str | None) -> None:
    assert shown is None or matches(printed, shown), f"it prints:\n{printed}\nand the page shows:\n{shown}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.is_run for block in blocks(page))])
def test_blocks_of_a_page_run(
    page: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHEDULER_REDIS_URL", server)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("CHANGES", "one line")
    monkeypatch.chdir(tmp_path)
    with Reader(tmp_path, dict(os.environ)) as reader:
        for block in blocks(page):
            if block.is_run:
                try:
                    reader.run(block._replace(code=block.code.replace(LOCAL, server)))
                except BaseException:
                    pytest.fail(f"{block.place}: the block fails\n{traceback.format_exc()}", pytrace=False)
