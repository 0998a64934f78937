"""What operators do: check an installation, purge lanes, requeue jobs. Whoever faces them shows it."""

from scheduler.admin.doctor import Finding, Level, examine
from scheduler.admin.jobs import requeue
from scheduler.admin.lanes import known_lanes, purge

__all__ = ["Finding", "Level", "examine", "known_lanes", "purge", "requeue"]
