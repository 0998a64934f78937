"""Finds out whether a llama-server keeps the prefixes of earlier prompts when other prompts take their slots.

The server does not say: `/props` is the same with `--cache-ram 0`. So an idle server is given one prompt,
another one in the same slot, and the first one again.
"""

from __future__ import annotations

from typing import Any

from workers.http import HttpEndpoint

_SLOTS = "/slots"
_COMPLETION = "/completion"
# They differ from the first word, so that a beginning-of-text token is all that they share.
_PROMPT = "Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu"
_OTHER = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday, and again"


async def keeps_prefixes(endpoint: HttpEndpoint, *, model: str | None) -> bool | None:
    """Whether the server still has a prompt after another one; None while the server is busy.

    Costs an idle server three prompts of some 20 tokens.

    Raises:
        WorkerError: the server does not answer, does not show its slots, or does not complete.
        LookupError, TypeError: the answers are not those of a llama-server, or of one before `cache_n`.
    """
    slots = await endpoint.get(_SLOTS)
    if any(slot["is_processing"] for slot in slots):
        return None
    for prompt in (_PROMPT, _OTHER):
        await endpoint.post(_COMPLETION, _one_token(prompt, model))
    again = await endpoint.post(_COMPLETION, _one_token(_PROMPT, model))
    return bool(again["timings"]["cache_n"] * 2 >= again["tokens_evaluated"])


def _one_token(prompt: str, model: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "n_predict": 1, "id_slot": 0, **({"model": model} if model else {})}
