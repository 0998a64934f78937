"""A call to an endpoint, from its start to its end."""

from __future__ import annotations


class EndpointCall:
    """A call in flight. `epoch` is the breaker's when it began; `full`: the window was full then.

    `urgent` is how many urgent prompts it carries: all, or none.
    """

    __slots__ = ("began_at", "ended_at", "endpoint", "epoch", "error", "full", "given_up", "urgent")

    def __init__(self, endpoint: str, epoch: int, began_at: float, full: bool) -> None:
        self.endpoint = endpoint
        self.epoch = epoch
        self.began_at = self.ended_at = began_at
        self.full = full
        self.error: Exception | None = None
        self.given_up = False
        self.urgent = 0
