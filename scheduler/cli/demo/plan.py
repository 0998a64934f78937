"""The prompts that the demo sends. The same each time."""

from __future__ import annotations

import random
from typing import Any

from scheduler.model import DedupMode, Priority, PromptRequest

PROMPTS = 200
DUPLICATES = 40
MIX = {
    Priority.CRITICAL: 10,
    Priority.HIGH: 30,
    Priority.NORMAL: 60,
    Priority.LOW: 30,
    Priority.BACKGROUND: 30,
}

_TASKS = {
    Priority.CRITICAL: "Pager alert {n}: say in one line what the disk array is doing right now",
    Priority.HIGH: "Chat user {n} asks: how do I change the address of my order, please?",
    Priority.NORMAL: "Ticket {n}: sum up what the customer wrote and propose a polite answer",
    Priority.LOW: "Draft {n}: rewrite this paragraph so that a child of ten can follow it",
    Priority.BACKGROUND: "Archive page {n}: list the names of all people and places in this text",
}


def make_plan(model: str, params: dict[str, Any]) -> list[PromptRequest]:
    """All prompts, in the order in which they are sent: priorities mixed, and some of them twice."""
    chance = random.Random(11)
    firsts = [
        PromptRequest(
            prompt=_TASKS[priority].format(n=n),
            model=model,
            priority=int(priority),
            dedup_key=f"{priority.name}-{n}",
            dedup=DedupMode.WINDOW,
            params=params,
        )
        for priority, count in MIX.items()
        for n in range(1, count + 1)
    ]
    plan = firsts + chance.sample(firsts, DUPLICATES)
    chance.shuffle(plan)
    return plan
