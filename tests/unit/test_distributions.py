"""What the source distribution and the wheel hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
PACKAGES = ("_prompt_scheduler", "scheduler", "workers")
FOLDERS = {*PACKAGES, ".ci", "benchmarks", "deploy", "docs", "examples", "tests"}
FILES = {".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    (archive,) = SdistBuilder(str(ROOT)).build(directory=str(folder))
    shutil.unpack_archive(archive, folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    (archive,) = WheelBuilder(str(source)).build(directory=str(folder), versions=["standard"])
    shutil.unpack_archive(archive, folder / "unpacked", "zip")
    return folder / "unpacked"


def tracked() -> set[str]:
    """The files that the repository holds, or will."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no repository")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def code_of(folder: Path) -> dict[str, bytes]:
    """What the packages of a tree hold, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_source_distribution_holds_what_the_repository_does(source: Path) -> None:
    assert files_of(source) - {"PKG-INFO"} == tracked()


def test_source_distribution_is_whole(source: Path) -> None:
    top = {path.name for path in source.iterdir()}
    assert top == FOLDERS | FILES | {"PKG-INFO"}


def test_wheel_of_the_source_distribution_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    (metadata,) = (path.name for path in wheel.iterdir() if path.name.endswith(".dist-info"))
    assert {path.name for path in wheel.iterdir()} == {*PACKAGES, metadata}
    assert code_of(wheel) == code_of(ROOT)
    suffixes = {PurePosixPath(name).suffix for name in code_of(wheel)}
    assert suffixes == {".py", ".lua", ".typed"}


def test_wheel_has_its_licence_its_extras_and_its_entry_points(wheel: Path) -> None:
    (info,) = wheel.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    points = ConfigParser()
    points.read(info / "entry_points.txt")
    assert dict(points["console_scripts"]) == {"prompt-scheduler": "_prompt_scheduler.command:main"}
    assert dict(points["pytest11"]) == {"prompt-scheduler": "_prompt_scheduler.pytest_plugin"}
    extras = [
        line for line in (info / "METADATA").read_text().splitlines() if line.startswith("Provides-Extra")
    ]
    assert "Provides-Extra: all" in extras


def test_wheel_runs_a_prompt(wheel: Path, tmp_path: Path) -> None:
    program = (
        "import scheduler, workers\n"
        "from scheduler.testing import local_client\n"
        "with local_client() as client:\n"
        "    print(scheduler.__file__, workers.__file__, client.run('hello', model='echo').text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [
        str(wheel / "scheduler" / "__init__.py"),
        str(wheel / "workers" / "__init__.py"),
        "hello",
    ], done.stderr


def test_repository_holds_no_built_package() -> None:
    assert not [name for name in tracked() if name.endswith((".whl", ".tar.gz", ".egg"))]
