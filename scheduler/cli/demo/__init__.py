"""`prompt-scheduler demo`: a server, a worker process, a client process, and a live table of what they do."""

from scheduler.cli.demo.command import demo

__all__ = ["demo"]
