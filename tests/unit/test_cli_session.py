"""How a command ends on a signal."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import typer

from scheduler.cli.session import run


@pytest.mark.parametrize("where", ["before a timeout", "in a sleep", "in a loop that does not wait"])
def test_ctrl_c_is_never_swallowed(where: str) -> None:
    """`asyncio.timeout` takes a cancellation for its own if it came within the turn in which it expires."""

    async def work() -> None:
        timeout = asyncio.timeout(0)
        signal.raise_signal(signal.SIGINT)
        try:
            if where == "before a timeout":
                async with timeout:
                    await asyncio.sleep(1)
        except TimeoutError:
            pass
        if where == "in a loop that does not wait":
            signal.raise_signal(signal.SIGINT)  # typed again, as nothing happened
        await asyncio.sleep(30)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(work())
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_a_command_with_the_code_of_a_shell() -> None:
    cleaned_up = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(30)
        finally:
            cleaned_up.append(True)

    with pytest.raises(typer.Exit) as ended:
        run(work())
    assert (ended.value.exit_code, cleaned_up) == (143, [True])
