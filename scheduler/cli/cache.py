"""Where the command line keeps what it fetches, and what the Makefile installs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scheduler.errors import ConfigError


def user_cache(environ: Mapping[str, str]) -> Path:
    """The folder: `$XDG_CACHE_HOME/prompt-scheduler`, else below `~/.cache`.

    Raises:
        ConfigError: neither the variable nor a home folder is there.
    """
    try:
        base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise ConfigError("XDG_CACHE_HOME: set it, to say where models go; there is no home folder") from None
    return base.absolute() / "prompt-scheduler"
