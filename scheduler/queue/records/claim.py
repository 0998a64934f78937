"""What a claim offers and brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Offer:
    """An endpoint that may take jobs."""

    endpoint: str
    """Its name."""
    room: int
    """How many more prompts it may take."""
    reserved: int = 0
    """How many of those slots are for priorities 8 and 9."""
    outstanding: int = 0
    """How many prompts it has."""
    weight: float = 1.0
    """Its share of the prompts, beside those of the other endpoints."""


class ClaimedJob(NamedTuple):
    """One attempt of one job, leased to this process."""

    id: str
    """The job."""
    token: int
    """Fences every write about this attempt."""
    attempt: int
    """Counted from 1."""
    failures: int
    """How many attempts before this one failed."""
    max_attempts: int | None
    """How many failures end the job; None: as the settings say."""
    priority: int
    """0 to 9; 9 is the most urgent."""
    lane: str
    """The lane that it was claimed from."""
    tenant: str
    """Whose rate limits it counts against."""
    waited_ms: int
    """How long the job had been ready to run when it was claimed."""
    remaining_ms: int | None
    """From the claim to the deadline; None without one."""
    result_ttl_ms: int | None
    """How long the job is to be kept after its end; None: as the settings say."""
    payload: bytes
    """The request, JSON."""
    endpoint: str = ""
    """The endpoint whose permit it has; `""` if the claim offered no endpoints for its lane."""
    suspect: bool = False
    """Whether it may have killed the worker processes that ran it before."""
    waits: int = 0
    """How many attempts before this one were given back at no cost."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought."""

    jobs: tuple[ClaimedJob, ...]
    """Leased to this process, the most urgent first."""
    more: bool
    """Whether claimable work was left behind."""
    more_urgent: bool = False
    """Whether some of that has priority 8 or 9."""
    without_permit: Mapping[str, WithoutPermit] = field(default_factory=dict)
    """The lanes whose work was left because no endpoint that it could go to has a permit.

    They do not count as `more`, and nobody is woken for them.
    """

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
    """Endpoints that have used up their rate limits."""

    endpoints: tuple[str, ...]
    """Their names."""
    wait_ms: int
    """When one of them has a permit again."""
