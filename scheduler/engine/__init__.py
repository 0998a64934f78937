"""The engine of a worker process."""

from scheduler.engine.engine import Engine

__all__ = ["Engine"]
