"""The engine of a worker process."""

from scheduler.engine.engine import Engine, worker_id
from scheduler.engine.reload import SettingsReloader

__all__ = ["Engine", "SettingsReloader", "worker_id"]
