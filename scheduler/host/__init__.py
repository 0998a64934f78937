"""The arq host: `arq scheduler.WorkerSettings` is a worker process."""
