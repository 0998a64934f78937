"""The command line. Extra `cli`."""

from scheduler.cli.app import app

__all__ = ["app"]
