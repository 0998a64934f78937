"""The fixture `prompt_client`.

Every pytest in the environment loads this plugin, even in a project with a `scheduler` or `workers` of its
own: it imports nothing before a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scheduler.client import Client


@pytest.fixture
def prompt_client() -> Iterator[Client]:
    """A client with an engine in this process, on fakeredis, with the route `echo`."""
    from _prompt_scheduler.names import clash  # noqa: PLC0415  not before a test asks for it

    if message := clash():
        pytest.fail(f"prompt_client: {message}", pytrace=False)
    from scheduler.testing.local import local_client  # noqa: PLC0415  the same

    with local_client() as client:
        yield client
