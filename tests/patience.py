"""How long tests wait for what must come."""

from __future__ import annotations

import os

SOON_S = float(os.environ.get("TEST_PATIENCE_S", "60"))
"""Longer than anything takes, on the busiest machine: only a test that fails waits as long."""
