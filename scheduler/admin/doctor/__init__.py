"""Checks an installation: Redis and its settings, the endpoints, the worker processes. Changes nothing."""

from scheduler.admin.doctor.examine import examine
from scheduler.admin.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examine"]
