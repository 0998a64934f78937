"""Checks whether `scheduler` and `workers` belong to prompt-scheduler, without importing them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

# How the first file of each begins: another package of that name may have been installed over it.
BEGINNINGS = {"scheduler": b'"""prompt-scheduler:', "workers": b'"""Model workers:'}
NAMES = tuple(BEGINNINGS)

_HERE = Path(__file__).parent.parent


def clash() -> str | None:
    """Describe a clash and what to do about it in one line; None if both names are prompt-scheduler's."""
    for name in NAMES:
        found = _found(name)
        if found is None:
            return f"the package {name!r} is missing from {_HERE}: install prompt-scheduler again"
        if found != _HERE / name and found.resolve() != (_HERE / name).resolve():
            return (
                f"the import name {name!r} is prompt-scheduler's, but {found} comes first on sys.path: "
                "rename it, start from another folder, or uninstall the package that has it"
            )
        if not _begins(found / "__init__.py", BEGINNINGS[name]):
            return (
                f"another package has been installed over prompt-scheduler's {name!r} in {_HERE}: "
                "uninstall that package, then install prompt-scheduler again"
            )
    return None


def check() -> None:
    """Check both names; called before `scheduler` imports anything of `workers`.

    In a process that arq or `python -m` started, a clash ends the process with one line instead of a
    traceback.

    Raises:
        ImportError: another package has one of the names.
    """
    message = clash()
    if message is None:
        return
    if "arq.cli" in sys.modules or sys.argv[:1] == ["-m"]:
        leave(message)
    raise ImportError(message)


def leave(message: str) -> None:
    """End the process with one line."""
    print(f"prompt-scheduler: {message}", file=sys.stderr)  # noqa: T201  logging is not set up yet
    raise SystemExit(2)


def _begins(file: Path, beginning: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(beginning)) == beginning
    except OSError:  # there is only compiled code
        return True


def _found(name: str) -> Path | None:
    """The folder of the package, or the file of the module, that an import would find."""
    module = sys.modules.get(name)
    origin = _origin(module) if module is not None else _spec_origin(name)
    if origin is None:
        return None
    return origin.parent if origin.stem == "__init__" else origin


def _origin(module: ModuleType) -> Path | None:
    if file := getattr(module, "__file__", None):
        return Path(file)
    folders = list(getattr(module, "__path__", ()))
    return Path(folders[0]) if folders else None


def _spec_origin(name: str) -> Path | None:
    spec = find_spec(name)
    if spec is None:
        return None
    if spec.origin and spec.has_location:
        return Path(spec.origin)
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0]) if folders else None
