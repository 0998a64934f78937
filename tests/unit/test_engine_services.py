"""The small services of an engine: their common start and stop, and those that need no Redis."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from scheduler.engine import service as service_module
from scheduler.engine.control import Control
from scheduler.engine.overdue import Overdue
from scheduler.engine.permits import Permits
from scheduler.engine.service import Service


class Counting(Service):
    """Fails in its first runs, then waits."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__("counting")
        self.failures = failures
        self.runs = 0
        self.is_waiting = asyncio.Event()
        self.was_cancelled = False

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self.failures:
            raise RuntimeError("a bug")
        self.is_waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def test_a_service_starts_once_and_stops_once() -> None:
    service = Counting()
    await service.start()
    await service.start()
    await service.is_waiting.wait()
    await service.stop()
    await service.stop()
    assert service.runs == 1
    assert service.was_cancelled


async def test_a_service_that_was_never_started_may_be_stopped() -> None:
    await Counting().stop()


async def test_a_service_that_fails_is_logged_and_starts_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "RESTART_S", 0.0)
    service = Counting(failures=2)
    await service.start()
    await service.is_waiting.wait()
    await service.stop()
    assert service.runs == 3
    assert caplog.text.count("service 'counting' failed; it starts again") == 2


class Orders:
    """A control service without Redis, and what it has passed on."""

    def __init__(self) -> None:
        self.cancelled: list[tuple[str, int]] = []
        self.forgiven: list[str] = []
        self.control = Control(
            None,  # type: ignore[arg-type]  # it does not listen here
            "control",
            on_cancel=lambda job_id, token: self.cancelled.append((job_id, token)),
            on_forgive=self.forgiven.append,
        )

    def apply(self, **order: object) -> None:
        self.control.apply(orjson.dumps(order))


def test_control_messages_cancel_jobs_and_reset_limits() -> None:
    orders = Orders()
    orders.apply(cancel="job", token=7)
    orders.apply(cancel="job", token="8")
    orders.apply(forgive="e:chat.0")
    assert orders.cancelled == [("job", 7), ("job", 8)]
    assert orders.forgiven == ["e:chat.0"]


@pytest.mark.parametrize("message", [b"", b"{", b"[]", b"7", b"{}", b'{"cancel":"job","token":"x"}', b"null"])
def test_a_control_message_that_cannot_be_read_changes_nothing(message: bytes) -> None:
    orders = Orders()
    orders.control.apply(message)
    assert (orders.cancelled, orders.forgiven) == ([], [])


async def test_overdue_tokens_are_taken_together_and_once() -> None:
    overdue = Overdue()
    overdue.add(1)
    overdue.add(2)
    overdue.add(1)
    assert sorted(await overdue.take()) == [1, 2]
    taker = asyncio.ensure_future(overdue.take())
    await asyncio.sleep(0)
    assert not taker.done()
    overdue.add(3)
    assert await taker == (3,)


async def test_an_endpoint_without_a_permit_is_refused_until_it_is_due() -> None:
    due = asyncio.Event()
    permits = Permits(on_due=due.set)
    assert not permits.refused("chat")
    permits.refuse("chat", ("chat.0",), 0.2)
    assert "chat.0" in permits.refused("chat")
    assert "chat.1" not in permits.refused("chat")
    assert "chat.0" not in permits.refused("small")
    assert 0 < permits.wait_s("chat", "chat.0") <= 0.2
    await asyncio.wait_for(due.wait(), 5)
    assert "chat.0" not in permits.refused("chat")
    assert permits.wait_s("chat", "chat.0") == 0


async def test_cleared_permits_refuse_nothing() -> None:
    permits = Permits(on_due=lambda: None)
    permits.refuse("chat", ("chat.0", "chat.1"), 60)
    permits.clear()
    assert not permits.refused("chat")
    assert permits.wait_s("chat", "chat.1") == 0
