"""Job ids: UUIDs of version 7, which sort by creation time."""

from __future__ import annotations

import os
import time


def new_job_id() -> str:
    """A UUIDv7: 48 bits of milliseconds since the epoch, 74 random bits. Source: RFC 9562, 5.7."""
    value = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
