"""Environments of the peers: outside the tree, made once for each list of requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

INSTALL_TIMEOUT_S = 600
LOCK_FILES = ("requirements.txt", "package-lock.json")


class CannotInstall(Exception):
    """An environment cannot be made here; the message says why."""


def python_environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with the `requirements.txt` of this folder; made if need be.

    Raises:
        CannotInstall: it cannot be made.
    """
    place = _place(folder)
    python = place / "bin" / "python"
    if not _is_complete(place):
        _run([sys.executable, "-m", "venv", str(place)])
        pip = (str(python), "-m", "pip", "install", "--quiet", "--no-input", "--retries", "1")
        _run([*pip, "--requirement", str(folder / "requirements.txt")])
        _complete(place)
    return python


def node_environment(folder: Path) -> Path:
    """The `node_modules` with what the `package-lock.json` of this folder names; made if need be.

    Raises:
        CannotInstall: there is no Node, or it cannot be made.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise CannotInstall("there is no node or no npm on PATH")
    place = _place(folder)
    if not _is_complete(place):
        place.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, place)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--fetch-retries=1"], cwd=place)
        _complete(place)
    return place / "node_modules"


def _place(folder: Path) -> Path:
    """Where an environment lies: its path changes with its requirements and with the interpreter."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = hashlib.sha256(sys.version.encode())
    for name in LOCK_FILES:
        if (folder / name).exists():
            pins.update((folder / name).read_bytes())
    return cache / "prompt-scheduler" / "peers" / folder.name / pins.hexdigest()[:16]


def _is_complete(place: Path) -> bool:
    """Whether the environment was made to its end; what is left of one that was not is removed."""
    if (place / "complete").exists():
        return True
    shutil.rmtree(place, ignore_errors=True)
    return False


def _complete(place: Path) -> None:
    (place / "complete").touch()


def _run(command: list[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(
            command, cwd=cwd, check=True, timeout=INSTALL_TIMEOUT_S, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).strip().splitlines()
        raise CannotInstall(f"{' '.join(command[:4])}…: {words[-1] if words else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(str(error)) from error
