"""The time limit of reads: it strikes a read that is under way, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from tests.patience import SOON_S
from workers.read_timer import ReadTimer


class Reader:
    """Reads what never comes, or what `chunks` has."""

    def __init__(self, limit_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.timer = ReadTimer(self.loop.time() + limit_s)
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self.reading = asyncio.Event()

    async def read(self) -> bytes:
        self.timer.begin()
        self.reading.set()
        try:
            return await self.chunks.get()
        except asyncio.CancelledError:
            if not self.timer.is_up():
                raise
            raise TimeoutError from None
        finally:
            self.timer.end()


async def test_read_that_takes_too_long_is_ended_and_its_task_goes_on() -> None:
    reader = Reader(0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(), SOON_S)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_limit_that_moves_on_is_kept_without_another_timer() -> None:
    reader = Reader(0.02)
    reader.chunks.put_nowait(b"a")
    await reader.read()
    reader.timer.move(reader.loop.time() + 60)
    reading = asyncio.ensure_future(reader.read())
    await asyncio.sleep(0.06)
    assert not reading.done()
    reader.chunks.put_nowait(b"b")
    assert await reading == b"b"
    reader.timer.close()


async def test_limit_that_moves_nearer_is_kept() -> None:
    reader = Reader(60)
    reading = asyncio.ensure_future(reader.read())
    await reader.reading.wait()
    reader.timer.move(reader.loop.time() + 0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reading, SOON_S)


async def test_time_between_two_reads_strikes_nobody() -> None:
    reader = Reader(0.01)
    reader.chunks.put_nowait(b"a")
    await reader.read()
    await asyncio.sleep(0.05)
    reader.timer.move(reader.loop.time() + 60)
    reader.chunks.put_nowait(b"b")
    assert await reader.read() == b"b"
    reader.timer.close()


async def test_cancellation_from_outside_stays_one() -> None:
    reader = Reader(60)
    reading = asyncio.ensure_future(reader.read())
    await reader.reading.wait()
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    reader.timer.close()


async def test_cancellation_at_the_moment_of_the_limit_stays_one() -> None:
    reader = Reader(60)
    reading = asyncio.ensure_future(reader.read())
    await reader.reading.wait()
    reading.cancel()
    reader.timer._fire()
    reader.timer.move(0.0)
    reader.timer._fire()
    await asyncio.wait([reading])
    assert reading.cancelled()


async def test_chunk_that_comes_at_the_moment_of_the_limit_ends_in_one_of_the_two() -> None:
    reader = Reader(60)
    reading = asyncio.ensure_future(reader.read())
    await reader.reading.wait()
    reader.chunks.put_nowait(b"a")
    reader.timer.move(0.0)
    reader.timer._fire()
    with pytest.raises(TimeoutError):
        await reading
    assert reading.cancelling() == 0


async def test_closed_timer_is_set_no_more() -> None:
    reader = Reader(0.01)
    reading = asyncio.ensure_future(reader.read())
    await reader.reading.wait()
    reader.timer.close()
    reader.timer.close()
    await asyncio.sleep(0.05)
    assert not reading.done()
    reading.cancel()
