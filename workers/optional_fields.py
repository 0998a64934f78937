"""Fields of a request that a server may refuse although it can do the work.

Strict servers refuse unknown fields, and a proxy may be stricter than the engine behind it. A field that an
adapter adds by itself is left out after its first refusal, and a field with two names is sent under the other
one. A field that the user sets is never left out.
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

    `changes` maps the fields that the server has refused to their other name, or to None if they are left
    out.
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
        """The change after which the server may accept a request; None if the error names no such field."""
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
    """The `body` that one call sends, with the changes that the server needs."""

    def __init__(self, body: Mapping[str, Any], optional: OptionalFields) -> None:
        self._optional = optional
        self._changes: dict[str, str | None] = {}
        self.body = _changed(body, optional.changes)

    def accepted(self) -> None:
        """Note that the server accepted the body: later requests are changed from the start."""
        for name, other in self._changes.items():
            self._optional.changes.pop(other or "", None)
            self._optional.changes[name] = other

    def give_way(self, error: WorkerError) -> bool:
        """Change the field that the error names. False: nothing can be changed; raise the error."""
        change = self._optional.change_for(error, self.body)
        if change is None or change[0] in self._changes:
            return False
        self._changes.update([change])
        self.body = _changed(self.body, dict([change]))
        return True


def _may_refuse(name: str, error: WorkerError) -> bool:
    # Servers in Python answer 500 to an unknown argument; but a plain word may occur in any 500.
    return isinstance(error, RequestRejected) or (isinstance(error, WorkerUnavailable) and "_" in name)


def _changed(body: Mapping[str, Any], changes: Mapping[str, str | None]) -> Mapping[str, Any]:
    if changes.keys().isdisjoint(body):
        return body
    changed = {name: value for name, value in body.items() if name not in changes}
    for name, other in changes.items():
        if name in body and other is not None:
            changed.setdefault(other, body[name])
    return changed
