"""A stage of the worker processes under chaos: it notes every call of an engine, and falls over poison."""

from __future__ import annotations

import asyncio
import os
import signal

from scheduler.stages.base import PromptContext

POISON = "POISON"


class Ledger:
    """Writes a line `job attempt` for each call of an engine to the file `CHAOS_CALLS`."""

    name = "ledger"

    def __init__(self) -> None:
        self._file = os.open(os.environ["CHAOS_CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def run(self, context: PromptContext) -> None:
        """Note the call; a prompt of poison ends the process."""
        os.write(self._file, f"{context.job_id} {context.attempt}\n".encode())
        if context.prompt and context.prompt.startswith(POISON):
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
