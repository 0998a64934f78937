"""Operations for administrators: check an installation, audit, purge, requeue. Nothing is printed here."""

from scheduler.admin.audit import PROBLEMS, AuditReport, audit
from scheduler.admin.dead import (
    DeadFilter,
    dead_letter_ids,
    dead_letters,
    purge_dead_letters,
    read_dead_letter,
    requeue_dead_letters,
)
from scheduler.admin.doctor import Finding, Level, examine
from scheduler.admin.jobs import requeue
from scheduler.admin.lanes import known_lanes, purge, purge_delayed
from scheduler.admin.limits import forgive_endpoint, forgive_tenant

__all__ = [
    "PROBLEMS",
    "AuditReport",
    "DeadFilter",
    "Finding",
    "Level",
    "audit",
    "dead_letter_ids",
    "dead_letters",
    "examine",
    "forgive_endpoint",
    "forgive_tenant",
    "known_lanes",
    "purge",
    "purge_dead_letters",
    "purge_delayed",
    "read_dead_letter",
    "requeue",
    "requeue_dead_letters",
]
