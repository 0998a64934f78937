"""How a user's dedup key becomes part of a Redis key."""

from __future__ import annotations

import base64
import hashlib


def dedup_hash(key: str) -> str:
    """22 characters for a dedup key of any length: 128 bits of BLAKE2b, URL-safe base64."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
