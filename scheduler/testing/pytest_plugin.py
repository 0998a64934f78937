"""pytest finds the fixture `prompt_client` here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scheduler.client import Client


@pytest.fixture
def prompt_client() -> Iterator[Client]:
    """A client whose prompts an engine in this process runs, on fakeredis, with the route `echo`."""
    from scheduler.testing.local import local_client  # noqa: PLC0415  keeps every pytest start light

    with local_client() as client:
        yield client
