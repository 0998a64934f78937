"""Which endpoint gets a prompt, and how much each endpoint gets."""

from scheduler.routing.breaker import Breaker, BreakerState
from scheduler.routing.check import look_for_model
from scheduler.routing.choice import choose_endpoint
from scheduler.routing.endpoint import Endpoint
from scheduler.routing.limit import AdaptiveLimit, share_of
from scheduler.routing.monitor import EndpointMonitor
from scheduler.routing.report import report_of

__all__ = [
    "AdaptiveLimit",
    "Breaker",
    "BreakerState",
    "Endpoint",
    "EndpointMonitor",
    "choose_endpoint",
    "look_for_model",
    "report_of",
    "share_of",
]
