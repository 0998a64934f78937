"""Converts streamed tool calls of many servers to OpenAI's form.

OpenAI numbers the calls of an answer by `index`, names each call once, in its first fragment, and sends its
arguments as text in any number of fragments. Other servers leave out the index, give parallel calls the same
index, repeat id and name in every fragment, send the id last, send a new id with each fragment, or send the
arguments as an object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import orjson

Fragment: TypeAlias = dict[str, Any]

_CALL_FIELDS = frozenset({"id", "index", "type", "function", "name", "arguments", "parameters"})
_MAX_NAME_CHARS = 512


class ToolCalls:
    """The tool calls of one answer, identified by id, else by index; else a fragment continues the last."""

    __slots__ = ("_by_id", "_by_index", "_calls", "_next_id")

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._by_index: dict[int, _Call] = {}
        self._next_id = ""  # an id that came alone, before its call

    def __len__(self) -> int:
        """How many calls there are."""
        return len(self._calls)

    def read(self, said: Any) -> tuple[Fragment, ...]:
        """Convert the fragments of one event.

        Raises:
            TypeError: they are not objects.
        """
        named: set[int] = set()
        entries = [said] if isinstance(said, dict) else said
        found = [self._read_one(entry, named) for entry in entries if entry]
        return tuple(fragment for fragment in found if len(fragment) > 1)

    def finish(self, *, cut: bool) -> tuple[Fragment, ...]:
        """`{}` for each call without arguments, unless the answer was `cut` before they came."""
        return tuple(
            {"index": call.index, "function": {"arguments": "{}"}}
            for call in self._calls
            if not call.arguments and call.is_function and (call.said_empty or not cut)
        )

    def _read_one(self, entry: Any, named: set[int]) -> Fragment:
        said = _Said(entry)
        call = self._call_of(said, named)
        if call is None:
            self._next_id = said.id
            return {}
        if said.name:
            named.add(call.index)
        return call.add(said)

    def _call_of(self, said: _Said, named: set[int]) -> _Call | None:
        """The call of a fragment, new or known; None while only its id is known."""
        call = self._known(said)
        if call is not None and said.name and self._begins_another(call, said, named):
            call = None
        if call is not None and said.id and not said.name and call.id not in {"", said.id} and call.is_whole:
            if not said.arguments.strip():
                return None
            call = None
        if call is None:
            call = _Call(len(self._calls))
            self._calls.append(call)
            said.id, self._next_id = said.id or self._next_id, ""
        if said.id:
            self._by_id[said.id] = call
        if said.index is not None:
            self._by_index[said.index] = call
        call.said_index = said.index
        return call

    def _known(self, said: _Said) -> _Call | None:
        last = self._calls[-1] if self._calls else None
        if call := self._by_id.get(said.id):
            return call
        if said.index is None:
            return last
        if call := self._by_index.get(said.index):
            return call
        return None if said.name or said.id else last

    def _begins_another(self, call: _Call, said: _Said, named: set[int]) -> bool:
        """Whether a fragment with a name begins a new call instead of continuing this one."""
        if said.id and said.id in self._by_id:
            return self._repeats_an_id(call, said, named)
        if said.id and call.id:
            return True
        if call.index in named:
            return call.is_whole or not call.arguments
        if not call.name:
            return False
        if said.name != call.name and (call.is_whole or call.arguments):
            return True
        if call.is_whole and said.arguments.strip():
            return said.arguments != call.text
        return said.name != call.name and said.index is None and _is_object(said.arguments)

    @staticmethod
    def _repeats_an_id(call: _Call, said: _Said, named: set[int]) -> bool:
        """Whether a repeated id means a second call instead of more of the first."""
        if not said.arguments.strip() or not call.is_whole:
            return False
        if None not in {said.index, call.said_index} and said.index != call.said_index:
            return True
        if said.name != call.name or call.index in named:
            return True
        return bool(call.arguments) and said.arguments != call.text


class _Said:
    """One fragment as the server sent it, with its fields converted to their types."""

    __slots__ = ("arguments", "extra", "id", "index", "name", "type")

    def __init__(self, entry: Any) -> None:
        if not isinstance(entry, Mapping):
            raise TypeError("a tool call is no object")
        function = entry.get("function")
        function = function if isinstance(function, Mapping) else entry
        self.id = _name(entry.get("id"))
        self.index = _index(entry.get("index"))
        self.type = _name(entry.get("type"))
        self.name = _name(function.get("name"))
        self.arguments = _arguments(function.get("arguments", function.get("parameters")))
        self.extra = {name: value for name, value in entry.items() if name not in _CALL_FIELDS and value}


class _Call:
    """A call in progress. `said_empty`: its arguments are `{}` so far; more may come."""

    __slots__ = ("arguments", "id", "index", "is_function", "name", "said_empty", "said_index", "type")

    def __init__(self, index: int) -> None:
        self.index = index  # in the answer; `said_index` is the server's
        self.said_index: int | None = None
        self.id = ""
        self.type = ""
        self.name = ""
        self.arguments: list[str] = []
        self.said_empty = False
        self.is_function = True

    @property
    def text(self) -> str:
        return "".join(self.arguments) or ("{}" if self.said_empty else "")

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are a JSON object to which nothing can be added."""
        if not self.arguments:
            return self.said_empty
        return self.arguments[-1].rstrip().endswith("}") and _is_object(self.text)

    def add(self, said: _Said) -> Fragment:
        """The new part of a fragment."""
        fragment: Fragment = {"index": self.index}
        if said.id and not self.id:
            self.id = fragment["id"] = said.id
        if not self.type and (said.type or said.name):
            self.type = fragment["type"] = said.type or "function"
            self.is_function = self.type == "function"
        function = self._new_name(said.name) | self._new_arguments(said.arguments)
        if function:
            fragment["function"] = function
        return fragment | said.extra

    def _new_name(self, name: str) -> Fragment:
        if not name or name == self.name or self.arguments:
            return {}
        # Some servers send the name in pieces, others repeat all of it so far.
        new = name.removeprefix(self.name)
        self.name += new
        return {"name": new, "arguments": ""}

    def _new_arguments(self, arguments: str) -> Fragment:
        if not self.arguments and arguments.strip() in {"", "{}", "null"}:
            self.said_empty = self.said_empty or bool(arguments.strip())
            return {}
        if not arguments or (self.is_whole and arguments == self.text):  # repeated at the end
            return {}
        self.arguments.append(arguments)
        return {"arguments": arguments}


def _name(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return ""
    return value[:_MAX_NAME_CHARS] if isinstance(value, str) else str(value)[:_MAX_NAME_CHARS]


def _index(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:9])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _arguments(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # half a character, a number beyond 64 bits
        return json.dumps(value, ensure_ascii=False)


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False
