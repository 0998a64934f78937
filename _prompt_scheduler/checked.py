"""Importing this makes sure that `scheduler` and `workers` are ours."""

from _prompt_scheduler.names import check

check()
