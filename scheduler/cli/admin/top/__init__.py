"""`prompt-scheduler admin top`: watches a queue at work."""

from scheduler.cli.admin.top.command import top

__all__ = ["top"]
