"""The clients: applications enqueue prompts with them, and read events and results."""

from scheduler.client.async_client import AsyncClient
from scheduler.client.job import Job
from scheduler.client.sync_client import Client, SyncJob

__all__ = ["AsyncClient", "Client", "Job", "SyncJob"]
