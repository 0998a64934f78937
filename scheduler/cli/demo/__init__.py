"""`prompt-scheduler demo`: a server, a worker process, a client process, and a live table of their work."""

from scheduler.cli.demo.command import demo

__all__ = ["demo"]
