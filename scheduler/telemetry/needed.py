"""What to say where an extra is missing."""

from __future__ import annotations

from scheduler.errors import ConfigError


def needs(setting: str, extra: str, error: ImportError) -> ConfigError:
    """The error for a setting whose libraries are not installed."""
    return ConfigError(
        f"{setting}: needs what is not installed ({error.name}): pip install 'prompt-scheduler[{extra}]'"
    )
