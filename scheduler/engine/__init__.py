"""The engine of a worker process."""

from scheduler.engine.engine import Engine, worker_id
from scheduler.engine.patience import Outage
from scheduler.engine.reload import SettingsReloader

__all__ = ["Engine", "Outage", "SettingsReloader", "worker_id"]
