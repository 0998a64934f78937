"""Checks at import that `scheduler` and `workers` belong to prompt-scheduler."""

from _prompt_scheduler.names import check

check()
