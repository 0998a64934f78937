"""Which lines of the scripts a test runs on fakeredis, and which lines a mutant changes."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any, TypeAlias

import pytest
from fakeredis.commands_mixins.scripting_mixin import ScriptingCommandsMixin

Lines: TypeAlias = dict[str, set[int]]
"""Line numbers, from 1 on, by the text of a script as the server gets it."""

_CONTINUED = re.compile(r"\s*(?:and|or|\.\.|\}|\w+ = .*,$|.*,$)")
_HOOK = """
local seen = {}
debug.sethook(function(_, line) seen[line] = true end, 'l')
return function(others) seen = others end
"""


@contextmanager
def seen_lines() -> Iterator[Lines]:
    """Collect the lines that scripts run inside the `with` block; they are there at its end."""
    lines: Lines = defaultdict(set)
    tables: dict[tuple[Any, str], Any] = {}
    switches: dict[Any, Any] = {}
    runtime_of = ScriptingCommandsMixin._get_server_runtime

    def noting(self: Any, server: Any) -> Any:
        runtime = runtime_of(self, server)
        script = sys._getframe(1).f_locals["script"].decode()
        if runtime not in switches:
            switches[runtime] = runtime.execute(_HOOK)
        if (runtime, script) not in tables:
            tables[runtime, script] = runtime.table()
        switches[runtime](tables[runtime, script])
        return runtime

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptingCommandsMixin, "_get_server_runtime", noting)
        yield lines
    for (_, script), table in tables.items():
        lines[script] |= set(table)


def changed_lines(before: str, after: str) -> set[int]:
    """The lines of a script that differ in another text of it, each with all lines of its expression."""
    lines = before.split("\n")
    changed: set[int] = set()
    matcher = SequenceMatcher(None, lines, after.split("\n"), autojunk=False)
    for kind, begin, end, _, _ in matcher.get_opcodes():
        if kind != "equal":
            changed |= {at for line in range(begin, max(end, begin + 1)) for at in _expression(lines, line)}
    return changed


def _expression(lines: Sequence[str], at: int) -> range:
    """The numbers of the lines around an index: Lua says of one only that some line of it has run."""
    first = last = min(at, len(lines) - 1)
    while first > 0 and _CONTINUED.match(lines[first]):
        first -= 1
    while last + 1 < len(lines) and _CONTINUED.match(lines[last + 1]):
        last += 1
    return range(first + 1, last + 2)
