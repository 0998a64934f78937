"""Events and results: one ordered writer in a worker process, one connection for the readers of a client."""

from scheduler.results.job_writer import JobWriter
from scheduler.results.reader import read_events, read_result
from scheduler.results.subscriptions import Subscriptions
from scheduler.results.writer import EventWriter

__all__ = ["EventWriter", "JobWriter", "Subscriptions", "read_events", "read_result"]
