"""The mutants of a Lua script: one small mistake each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# What stands between names and numbers, longest first, and what it is mistaken for.
_MISTAKEN = {
    "==": "~=",
    "~=": "==",
    "<=": "<",
    ">=": ">",
    "<": "<=",
    ">": ">=",
    " + ": " - ",
    " - ": " + ",
    " * ": " / ",
    " / ": " * ",
    " % ": " * ",
    " and ": " or ",
    " or ": " and ",
    "not ": "",
    "true": "false",
    "false": "true",
    "math.min": "math.max",
    "math.max": "math.min",
    "math.floor": "math.ceil",
}
SMALL = 100  # larger constants are times and bounds, of which one more says nothing
_NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])"
_PLACE = re.compile(
    "|".join(
        (
            *(re.escape(one) for one in _MISTAKEN if not one[0].isalpha()),
            *(
                rf"(?<![\w.]){re.escape(one)}" + ("" if one.endswith(" ") else r"\b")
                for one in _MISTAKEN
                if one[0].isalpha()
            ),
            _NUMBER,
        )
    )
)
_STRING_OR_COMMENT = re.compile(r"'(?:\\.|[^'\\])*'|--.*")
_CONDITION = re.compile(r"^(\s*(?:if|elseif) )(.+)( then\b.*)$")
_NO_STATEMENT = "local |return\\b|for |while |if |else|end\\b|function |break\\b|until "
_STATEMENT = re.compile(rf"^\s*(?!{_NO_STATEMENT})[a-z][\w.\[\]#, +*-]*(?: = .*|\(.*\))$")


@dataclass(frozen=True)
class Mutant:
    """A line of a file, and what stands there instead."""

    file: str
    number: int
    line: str
    instead: str

    def __str__(self) -> str:
        instead = self.instead.strip() or "(dropped)"
        return f"{self.file}.lua:{self.number}\n    {self.line.strip()}\n  → {instead}"

    def applied(self, text: str) -> str:
        lines = text.split("\n")
        lines[self.number - 1] = self.instead
        return "\n".join(lines)


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """All mutants of a file; `file` is its path in the folder of the scripts, without the ending."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith(("--", "#!")):
            continue
        for instead in dict.fromkeys(_variants(line)):
            yield Mutant(file, number, line, instead)


def _variants(line: str) -> Iterator[str]:
    code = _STRING_OR_COMMENT.sub(lambda match: "\0" * len(match.group()), line)
    for match in _PLACE.finditer(code):
        yield line[: match.start()] + _mistake(match.group()) + line[match.end() :]
    if condition := _CONDITION.match(code):
        for value in ("true", "false"):
            yield line[: condition.end(1)] + value + line[condition.start(3) :]
    if _STATEMENT.match(code) and code.count("(") == code.count(")") and code.count("{") == code.count("}"):
        yield ""


def _mistake(written: str) -> str:
    if written in _MISTAKEN:
        return _MISTAKEN[written]
    value = float(written) if "." in written else int(written)
    return str(value + 1 if value < SMALL else value * 2)
