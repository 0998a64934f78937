"""pytest finds the fixture `prompt_client` here.

Every pytest of the environment loads this, also where a project has a `scheduler` or `workers` of its own:
nothing is imported before a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scheduler.client import Client


@pytest.fixture
def prompt_client() -> Iterator[Client]:
    """A client whose prompts an engine in this process runs, on fakeredis, with the route `echo`."""
    from _prompt_scheduler.names import clash  # noqa: PLC0415  a pytest that starts loads nothing more

    if message := clash():
        pytest.fail(f"prompt_client: {message}", pytrace=False)
    from scheduler.testing.local import local_client  # noqa: PLC0415  the same

    with local_client() as client:
        yield client
