"""The options of arq's command line."""

from __future__ import annotations

from typing import Any

import click


def arq_option(name: str) -> Any:
    """Read an option of arq's command line; None if arq was not started from there."""
    command = click.get_current_context(silent=True)
    return command.params.get(name) if command else None
