"""Fields of a request that an answer can do without, where a server refuses them.

Strict servers refuse what they do not know, and a proxy may be stricter than the engine behind it. A field
that an adapter adds of its own accord is left out after its first refusal; what a user asks for never is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from workers.errors import RequestRejected, WorkerError, WorkerUnavailable


class OptionalFields:
    """The optional fields of one endpoint's requests, and those of them that it has `refused`."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.refused: set[str] = set()

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each field that is left out."""
        return tuple(
            f"the server refuses the field {name}: requests go without it" for name in sorted(self.refused)
        )


NO_OPTIONAL_FIELDS = OptionalFields()


class Attempts:
    """What one call sends: `body`, without what the endpoint has refused so far."""

    def __init__(self, body: Mapping[str, Any], optional: OptionalFields) -> None:
        self._optional = optional
        self._left_out: set[str] = set()
        self.body = _without(body, optional.refused)

    def accepted(self) -> None:
        """The server took it: what was left out for that stays out."""
        if self._left_out:
            self._optional.refused |= self._left_out

    def give_way(self, error: WorkerError) -> bool:
        """Leave out a field that the error names; False where it names none, and is to be raised."""
        self._optional.refused -= self._left_out
        words = str(error)
        names = [name for name in self._optional.names if name in self.body and name in words]
        if not names or not _is_refusal_of(names[0], error):
            return False
        self._left_out.add(names[0])
        self.body = _without(self.body, self._left_out)
        return True


def _is_refusal_of(name: str, error: WorkerError) -> bool:
    # Servers in Python answer 500 for an argument that they do not know; a plain word may stand in any 500.
    return isinstance(error, RequestRejected) or (isinstance(error, WorkerUnavailable) and "_" in name)


def _without(body: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    if not names:
        return body
    return {name: value for name, value in body.items() if name not in names}
