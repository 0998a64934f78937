"""Hashes a user's dedup key for a Redis key."""

from __future__ import annotations

import base64
import hashlib

# Base64 of 15 bytes has no padding, and on Valkey the Redis key fits a smaller allocation than with 16.
DIGEST_BYTES = 15


def dedup_hash(key: str) -> str:
    """20 characters for a dedup key of any length: 120 bits of BLAKE2b, URL-safe base64."""
    digest = hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()
    return base64.urlsafe_b64encode(digest).decode()
