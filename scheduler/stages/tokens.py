"""A cheap estimate of the number of tokens in a text."""

from __future__ import annotations

BYTES_PER_TOKEN = 4


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text: one for every four bytes of UTF-8, plus one.

    English comes out a little high. Scripts of several bytes a character, such as Chinese, come out near the
    truth; a count of characters would be off by a factor of three. Linear in the text, constant for ASCII.
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return size // BYTES_PER_TOKEN + 1
