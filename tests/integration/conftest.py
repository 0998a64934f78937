"""What tests of client and engine get: a room of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.engine_room import Room, room_with


@pytest.fixture
async def room(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    """Engines and clients on one fakeredis; the backend `puppet` is known."""
    async with room_with(monkeypatch) as room:
        yield room
