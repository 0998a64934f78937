"""For your own tests: a client and an engine in this process, on fakeredis. Extra `testing`.

async with local_scheduler() as client:              # AsyncClient
    result = await client.run("hello", model="echo")

with local_client() as client:                       # Client; also the pytest fixture `prompt_client`
    result = client.run("hello", model="echo")
"""

from scheduler.testing.local import local_client, local_scheduler

__all__ = ["local_client", "local_scheduler"]
