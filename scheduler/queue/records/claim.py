"""What a claim offers and brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Offer:
    """An endpoint that may take jobs: `room` more than the `outstanding` prompts that it has.

    `kept` of those places are for priorities 8 and 9.
    """

    endpoint: str
    room: int
    kept: int = 0
    outstanding: int = 0
    weight: float = 1.0


class ClaimedJob(NamedTuple):
    """One attempt of one job, leased to this process. `token` fences every write about it.

    `remaining_ms` is the time to the deadline at the moment of the claim, None without one; `waited_ms` the
    time since the job became ready to run. `endpoint` is the one whose permit it has, "" where the
    claim named no endpoints. `suspect`: it may have killed the worker processes that ran it before. `waits`
    counts its attempts that were given back at no cost.
    """

    id: str
    token: int
    attempt: int
    failures: int
    max_attempts: int | None
    priority: int
    lane: str
    tenant: str
    waited_ms: int
    remaining_ms: int | None
    result_ttl_ms: int | None
    payload: bytes
    endpoint: str = ""
    suspect: bool = False
    waits: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought. `more`: claimable work was left behind; `more_urgent`: of priority 8 or 9.

    `without_permit` has the lanes whose work was left because the endpoints that it could go to have no
    permit. They do not count as `more`, and nobody is woken for them.
    """

    jobs: tuple[ClaimedJob, ...]
    more: bool
    more_urgent: bool = False
    without_permit: Mapping[str, WithoutPermit] = field(default_factory=dict)

    def and_then(self, other: Claim) -> Claim:
        """Both as one."""
        return Claim(
            self.jobs + other.jobs,
            more=self.more or other.more,
            more_urgent=self.more_urgent or other.more_urgent,
            without_permit={**self.without_permit, **other.without_permit},
        )


NOTHING_CLAIMED = Claim((), more=False)


@dataclass(frozen=True, slots=True)
class WithoutPermit:
    """Endpoints that have used up their rate limits, and in how many ms one of them has a permit."""

    endpoints: tuple[str, ...]
    wait_ms: int
