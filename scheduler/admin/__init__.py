"""What operators do: check an installation, pause, resume and purge lanes. Whoever faces them shows it."""

from scheduler.admin.doctor import Finding, Level, examine
from scheduler.admin.lanes import known_lanes, purge

__all__ = ["Finding", "Level", "examine", "known_lanes", "purge"]
