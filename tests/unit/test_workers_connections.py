"""Clients are lent to one call at a time, the last used first, and closed when idle."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from workers.connections import Connections


class Clients:
    """Makes clients and remembers them; `now` is the time."""

    def __init__(self) -> None:
        self.made: list[httpx.AsyncClient] = []
        self.now = 0.0
        self.connections = Connections(self.make, idle_s=4.0, clock=lambda: self.now)

    def make(self) -> httpx.AsyncClient:
        self.made.append(httpx.AsyncClient(trust_env=False))
        return self.made[-1]

    @property
    def closed(self) -> list[bool]:
        return [client.is_closed for client in self.made]


@pytest.fixture
def clients() -> Clients:
    return Clients()


async def test_calls_at_the_same_time_have_a_client_each_and_later_ones_reuse_them(clients: Clients) -> None:
    async with clients.connections.one() as first, clients.connections.one() as second:
        assert first is not second
    async with clients.connections.one() as again:
        assert again is first, "the one that came back last"
    assert len(clients.made) == 2
    await clients.connections.aclose()


async def test_client_that_was_idle_for_long_is_closed_when_another_comes_back(clients: Clients) -> None:
    async with clients.connections.one():
        async with clients.connections.one():
            pass
        clients.now = 5.0
    assert clients.closed == [False, True]
    await clients.connections.aclose()


async def test_client_of_a_call_that_fails_or_is_cancelled_is_closed_and_not_lent_again(
    clients: Clients,
) -> None:
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error):
            async with clients.connections.one():
                raise error
    async with clients.connections.one():
        assert clients.closed == [True, True, False]
    await clients.connections.aclose()


async def test_closing_closes_all_and_those_in_use_when_they_come_back(clients: Clients) -> None:
    async with clients.connections.one():
        async with clients.connections.one():
            pass
        await clients.connections.aclose()
        await clients.connections.aclose()
        assert clients.closed == [False, True]
    assert clients.closed == [True, True]
