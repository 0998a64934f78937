"""The error for a missing extra."""

from __future__ import annotations

from scheduler.errors import ConfigError


def needs(setting: str, extra: str, error: ImportError) -> ConfigError:
    """Make the error for a setting whose libraries are not installed."""
    return ConfigError(
        f"{setting}: needs {error.name}, which is not installed: pip install 'prompt-scheduler[{extra}]'"
    )
