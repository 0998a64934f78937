"""Other queues, each in an environment of its own: the same work, on the same server, in the same run."""

from __future__ import annotations

from benchmarks.harness import Bench
from benchmarks.peers.catalog import ALL, QUICK
from benchmarks.peers.environments import CannotInstall
from benchmarks.peers.peer import FOLDER, How, Peer, Produced, ask_producer

__all__ = ["FOLDER", "How", "Peer", "Produced", "ask_producer", "available"]


def available(bench: Bench) -> list[Peer]:
    """The peers of this run, installed where need be; `bench.notes` says with what, or why not."""
    if bench.quick:
        bench.notes["peers"] = "a quick run has only arq, SAQ and BullMQ"
    found: list[Peer] = []
    for name, describe in (QUICK if bench.quick else ALL).items():
        try:
            peer = describe()
        except CannotInstall as error:
            bench.notes[name] = f"left out: {error}"
            continue
        bench.notes[name] = peer.settings
        found.append(peer)
    return found
