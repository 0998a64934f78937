"""Somebody else's `scheduler` or `workers` in front of ours: each entry point says so in a line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from _prompt_scheduler import names
from tests.patience import SOON_S

BIN = Path(sys.executable).parent
ARQ = [str(BIN / "arq"), "scheduler.WorkerSettings"]
COMMAND = [str(BIN / "prompt-scheduler"), "--version"]
MODULE = [sys.executable, "-m", "scheduler", "--version"]
# asyncio's plugin wants a setting that most suites do not have, and warns without it.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]


def run(command: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, which comes first on its `sys.path`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    return subprocess.run(
        command,
        cwd=folder,
        env={**clean, "PYTHONPATH": str(folder), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=SOON_S,
    )


def package(folder: Path, name: str, content: str = "") -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(content)
    return folder / name


def file(folder: Path, name: str) -> Path:
    (folder / f"{name}.py").write_text("raise SystemExit('it was imported')")
    return folder / f"{name}.py"


@pytest.mark.parametrize(
    ("command", "name"),
    [(ARQ, "workers"), (COMMAND, "workers"), (COMMAND, "scheduler"), (MODULE, "workers")],
    ids=["arq", "script-workers", "script-scheduler", "python -m"],
)
@pytest.mark.parametrize("make", [package, file])
def test_a_name_that_is_taken_is_one_line(
    tmp_path: Path, command: list[str], name: str, make: object
) -> None:
    theirs = make(tmp_path, name)  # type: ignore[operator]  # one of the two above
    done = run(command, tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"prompt-scheduler: the import name '{name}' is prompt-scheduler's, but {theirs} ")


def test_a_program_that_imports_us_gets_an_import_error_it_can_catch(tmp_path: Path) -> None:
    package(tmp_path, "workers")
    program = "try:\n    import scheduler\nexcept ImportError as error:\n    print(error)"
    done = run([sys.executable, "-c", program], tmp_path)
    assert done.stdout.startswith("the import name 'workers' is prompt-scheduler's, but "), done.stderr


@pytest.mark.parametrize("name", ["scheduler", "workers"])
def test_a_folder_without_modules_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    done = run(COMMAND, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_has_been_imported_already_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = ModuleType("workers")
    theirs.__file__ = str(tmp_path / "workers.py")
    monkeypatch.setitem(sys.modules, "workers", theirs)
    assert str(tmp_path / "workers.py") in (names.clash() or "")


def test_a_package_that_is_gone_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "workers")
    monkeypatch.setattr("_prompt_scheduler.names.find_spec", lambda name: None)
    assert "'workers' is missing" in (names.clash() or "")


@pytest.mark.parametrize("name", names.NAMES)
def test_a_package_that_was_installed_over_ours_is_found(tmp_path: Path, name: str) -> None:
    shutil.copytree(Path(names.__file__).parent, tmp_path / "_prompt_scheduler")
    for ours, beginning in names.BEGINNINGS.items():
        package(tmp_path, ours, "MINE = 1\n" if ours == name else beginning.decode() + '"""\n')
    program = "from _prompt_scheduler.command import main; main()"
    done = run([sys.executable, "-c", program], tmp_path)
    assert done.returncode == 2
    assert f"another package has been installed over prompt-scheduler's '{name}' in {tmp_path}" in done.stderr


def test_here_both_are_ours() -> None:
    assert names.clash() is None


# The pytest plugin

SUITE = """
def test_it():
    import scheduler, workers
    assert scheduler.MINE and workers.MINE
"""
STRICT = "[pytest]\nfilterwarnings =\n    error\naddopts = --strict-markers --strict-config\n"


def test_the_plugin_breaks_no_suite_with_such_packages_of_its_own(tmp_path: Path) -> None:
    for name in names.NAMES:
        package(tmp_path, name, "MINE = True\n")
    (tmp_path / "test_mine.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text(STRICT)
    for options in ([], ["-p", "no:prompt-scheduler"]):
        done = run([*PYTEST, *options], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_plugin_imports_nothing_before_its_fixture_is_asked_for(tmp_path: Path) -> None:
    for name in ("fakeredis", "redis", "pydantic", "httpx", "arq"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('an old {name}')")
    (tmp_path / "test_mine.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    ours = {'scheduler', 'workers', '_prompt_scheduler.names', 'fakeredis'}\n"
        "    assert not ours & sys.modules.keys()\n"
    )
    (tmp_path / "pytest.ini").write_text(STRICT)
    done = run(PYTEST, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fixture_says_whose_package_is_in_its_way(tmp_path: Path) -> None:
    theirs = package(tmp_path, "workers")
    (tmp_path / "test_mine.py").write_text("def test_it(prompt_client): pass\ndef test_other(): pass\n")
    done = run(PYTEST, tmp_path)
    assert done.returncode == 1
    assert f"prompt_client: the import name 'workers' is prompt-scheduler's, but {theirs} " in done.stdout
    assert "1 passed, 1 error" in done.stdout
    assert "Traceback" not in done.stdout
