"""Derives how long an endpoint's calls may be silent from its settings."""

from __future__ import annotations

import math

from scheduler.batching import CallPatience
from scheduler.settings import EndpointSettings


def call_patience(settings: EndpointSettings, *, streams: bool) -> CallPatience:
    """The limits of an endpoint's calls. Without streaming, nothing arrives before the whole answer."""
    whole_s = settings.timeout_s
    return CallPatience(
        first_s=min(settings.first_token_timeout_s, whole_s) if streams else whole_s,
        next_s=min(settings.idle_timeout_s, whole_s),
        whole_s=whole_s,
        total_s=math.inf if settings.total_timeout_s is None else settings.total_timeout_s,
    )
