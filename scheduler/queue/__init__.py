"""The queue in Redis: Lua scripts, one a transition, and their one call site each."""

from scheduler.queue.keys import Keys
from scheduler.queue.queue import PromptQueue

__all__ = ["Keys", "PromptQueue"]
