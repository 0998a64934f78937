"""The arq host: `arq scheduler.WorkerSettings` is a worker process.

arq gives the process its command line, logging, health check and burst mode, and runs `run_prompt` for
applications that use arq. Prompts do not pass through arq's queue: the engine moves them.
"""
