"""What is said where settings want something whose extra is not installed."""

from __future__ import annotations

from scheduler.errors import ConfigError


def needs_otel() -> ConfigError:
    """The error for traces without OpenTelemetry."""
    return ConfigError("traces: needs OpenTelemetry: pip install 'prompt-scheduler[otel]'")
