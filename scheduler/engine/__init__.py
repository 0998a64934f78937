"""The engine of a worker process."""

from scheduler.engine.engine import Engine
from scheduler.engine.reload import SettingsReloader

__all__ = ["Engine", "SettingsReloader"]
