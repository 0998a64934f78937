"""What Python and the Lua scripts share: numbers, the fields of rows, defaults. Scripts get them by name."""

from __future__ import annotations

from functools import cache

from scheduler.model import URGENT
from scheduler.queue.rows import row_numbers
from scheduler.queue.stored_settings import defaults

FORMAT = 1
"""The format of what is stored. It grows when old readers would misunderstand what is stored."""

LOSSES_OF_A_SUSPECT = 2
"""A job that has lost its worker process this often may have killed it."""


@cache
def lua_constants() -> str:
    """Definitions for a script, one a line: `URGENT`, `NEW_PRIORITY`, `DEFAULT_MAX_WAITING`."""
    shared = {"FORMAT": FORMAT, "LOSSES_OF_A_SUSPECT": LOSSES_OF_A_SUSPECT, "URGENT": URGENT}
    by_name = (
        shared | row_numbers() | {f"DEFAULT_{name.upper()}": value for name, value in defaults().items()}
    )
    return "".join(f"local {name} = {_literal(value)}\n" for name, value in by_name.items())


def _literal(value: str | int) -> str:
    return f"'{value}'" if isinstance(value, str) else str(int(value))
