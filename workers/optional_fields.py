"""Fields of a request that a server may refuse although it can do what is asked.

Strict servers refuse what they do not know, and a proxy may be stricter than the engine behind it. A field
that an adapter adds of its own accord is left out after its first refusal, and one with two names gets the
other. What a user asks for is never left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from workers.errors import RequestRejected, WorkerError, WorkerUnavailable

_UNKNOWN_FIELD = re.compile(
    r"(un|not |n't )(supported|recogni[sz]ed|known|permitted|allowed|expected|support)|extra_forbidden", re.I
)


class OptionalFields:
    """The fields that an endpoint's requests can do without, and those that have a synonym.

    `changes` are what its server has made necessary so far: the other name of a field, or None where it is
    left out.
    """

    def __init__(self, *names: str, synonyms: Mapping[str, str] | None = None) -> None:
        self.names = names
        self.synonyms = synonyms or {}
        self.changes: dict[str, str | None] = {}

    @property
    def refused(self) -> list[str]:
        """The fields that are left out."""
        return sorted(name for name, other in self.changes.items() if other is None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each field that is left out."""
        return tuple(f"the server refuses the field {name}: requests go without it" for name in self.refused)

    def change_for(self, error: WorkerError, body: Mapping[str, Any]) -> tuple[str, str | None] | None:
        """What to change in a request so that the server may take it; None where the error names no field."""
        words = str(error)
        for name in self.names:
            if name in body and name in words and _may_refuse(name, error):
                return name, None
        if type(error) is not RequestRejected or not _UNKNOWN_FIELD.search(words):
            return None
        pairs = ((name, other) for name, other in self.synonyms.items() if name in body and other not in body)
        return next((pair for pair in pairs if pair[0] in words), None)


NO_OPTIONAL_FIELDS = OptionalFields()


class Attempts:
    """What one call sends: `body`, with the changes that the endpoint's server needs."""

    def __init__(self, body: Mapping[str, Any], optional: OptionalFields) -> None:
        self._optional = optional
        self._changes: dict[str, str | None] = {}
        self.body = _changed(body, optional.changes)

    def accepted(self) -> None:
        """The server took it: later requests are changed from the start."""
        for name, other in self._changes.items():
            self._optional.changes.pop(other or "", None)
            self._optional.changes[name] = other

    def give_way(self, error: WorkerError) -> bool:
        """Change what the error is about; False where nothing can be changed, and it is to be raised."""
        change = self._optional.change_for(error, self.body)
        if change is None or change[0] in self._changes:
            return False
        self._changes.update([change])
        self.body = _changed(self.body, dict([change]))
        return True


def _may_refuse(name: str, error: WorkerError) -> bool:
    # Servers in Python answer 500 for an argument that they do not know; a plain word may stand in any 500.
    return isinstance(error, RequestRejected) or (isinstance(error, WorkerUnavailable) and "_" in name)


def _changed(body: Mapping[str, Any], changes: Mapping[str, str | None]) -> Mapping[str, Any]:
    if changes.keys().isdisjoint(body):
        return body
    changed = {name: value for name, value in body.items() if name not in changes}
    for name, other in changes.items():
        if name in body and other is not None:
            changed.setdefault(other, body[name])
    return changed
