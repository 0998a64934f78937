"""Every key of a queue, spelled in this one place, for Python and for the Lua scripts.

All keys carry the queue's name as hash tag, so that one script may touch any of them in a cluster.
"""

from __future__ import annotations

import re

from scheduler.model import DEFAULT_TENANT

# Lua name -> what follows the prefix. A trailing colon: the rest is an id.
_KEYS: dict[str, str] = {
    "conf": "conf",  # HASH   settings of the queue: max_waiting, when_full, aging_ms, …
    "routes": "routes",  # HASH   route -> JSON, published by worker processes
    "limits": "limits",  # HASH   t:<tenant>, t:*, e:<endpoint> -> "requests tokens" a minute, 0: no limit
    "meta": "meta",  # HASH   us, token, tick, counts (n, n:<lane>), bitmaps (b:<lane>), totals (t:<what>), …
    #               ahead: how far the queue's clock is before Redis' own, ms; reap_after, excused, refusals
    #               by lane: ms and jobs since the last mean (ms:, ran:), mean ms a job (mean:)
    "beside": "beside",  # HASH   place beside a lane, "<lane> <tenant>" or "<lane> !" -> bitmap of its levels
    "limited": "limited",  # ZSET   held lane, "<lane> <tenant>" -> when some of it may be released, ms
    "released": "released",  # HASH   held lane -> the last job that was released from it
    "lanes": "lanes",  # SET    every lane that ever held a job
    "paused": "paused",  # SET    lanes that are not claimed from
    "delayed": "delayed",  # ZSET   job -> due, ms
    "deadlines": "deadlines",  # ZSET   job that waits -> deadline, ms
    "leases": "leases",  # ZSET   running job -> end of its lease, ms
    "dead": "dead",  # ZSET   failed job -> when, ms
    "finished": "finished",  # ZSET   ended job -> when its record goes, ms
    "garbage": "garbage",  # HASH   member that has no readable record -> why
    "workers": "workers",  # ZSET   worker process -> when it counts as gone, ms
    "leader": "leader",  # STRING the worker process that does the maintenance
    "samples": "samples",  # LIST   "<ms> <ended so far>", newest first
    "space": "space",  # LIST   a token when there is room again
    "spare": "spare",  # LIST   "<bytes> <job>": kept requests of cancelled, expired, shed jobs
    "record": "j:",  # HASH   a job
    "payload": "p:",  # STRING its request, JSON
    "staged": "s:",  # STRING a large request or result, until its script uses it
    "result": "r:",  # STRING its result, JSON
    "tickets": "h:",  # SET    its tickets, from the second on
    "stream": "e:",  # LIST   its events, JSON, the oldest first; the terminal one is made from its record
    "bucket": "l:",  # STRING of t:<tenant> or e:<endpoint>: when all of its requests and tokens are back, us
    "alias": "a:",  # STRING the id that a joined caller proposed -> the job it joined
    "claimed": "c:",  # STRING what a worker process got from its last claim
    "users": "u:",  # HASH   of an endpoint: worker process that uses it -> when it counts as gone, ms
    "worker": "n:",  # STRING a worker process' report about itself, JSON
    "wake": "k:",  # LIST   of a lane: one token when there is work
    "urgent": "ku:",  # LIST   of a lane: one token when there is work of priority 8 or 9
    "work": "work:",  # LIST   of a lane: one entry for each second of waiting work, for autoscalers
    "channel": "{db}:ch:",  # pub/sub channel of a job: pub/sub knows no databases, so their names do
    "control": "{db}:ctl",  # pub/sub channel to the worker processes
    "arq": "arq",  # arq's own queue of a worker process: run_prompt
    "health": "health:",  # arq's health check of one worker process
}


def _suffixes(db: int) -> dict[str, str]:
    return {name: suffix.replace("{db}", str(db)) for name, suffix in _KEYS.items()}


_FIXED = {suffix: name for name, suffix in _KEYS.items() if not suffix.endswith(":")}
_FAMILIES = {suffix: name for name, suffix in _KEYS.items() if suffix.endswith(":")} | {
    "w:": "level",
    "d:": "dedup",
}


class Keys:
    """The keys of one queue, and its channels in the database `db`."""

    def __init__(self, queue: str, db: int = 0) -> None:
        self.prefix = f"ps:{{{queue}}}:"
        self._suffixes = _suffixes(db)

    def fixed(self, name: str) -> str:
        """A key that each queue has once: `fixed("meta")`."""
        return self.prefix + self._suffixes[name]

    def of(self, name: str, ident: str) -> str:
        """A key that belongs to a job, a lane or a worker: `of("record", job_id)`."""
        return f"{self.prefix}{self._suffixes[name]}{ident}"

    def level(self, lane: str, priority: int) -> str:
        """ZSET: waiting jobs of a lane at one priority, by rank (µs)."""
        return f"{self.prefix}w:{priority}:{lane}"

    @staticmethod
    def held_lane(lane: str, tenant: str) -> str:
        """The lane in which a tenant's held jobs of a lane wait. No name has a space."""
        return f"{lane} {tenant}"

    @staticmethod
    def suspects_lane(lane: str) -> str:
        """The lane in which the suspects of a lane wait."""
        return f"{lane} !"

    @staticmethod
    def split_held_lane(held_lane: str) -> tuple[str, str]:
        """The lane and the tenant in the name of a held lane."""
        lane, _, tenant = held_lane.partition(" ")
        return lane, tenant

    def dedup(self, tenant: str, dedup_hash: str) -> str:
        """STRING: the job that owns a dedup key. The default tenant is left out, to save memory."""
        return f"{self.prefix}d:{dedup_hash}" + ("" if tenant == DEFAULT_TENANT else f":{tenant}")

    def split(self, key: str) -> tuple[str, str]:
        """What kind of key it is, and the rest: `("record", job_id)`, `("level", "5:lane")`, `("meta", "")`.

        The kind is "" for a key that no queue of this version writes.
        """
        rest = key.removeprefix(self.prefix)
        if rest in _FIXED:
            return _FIXED[rest], ""
        head, colon, ident = rest.partition(":")
        return _FAMILIES.get(head + colon, ""), ident

    def split_dedup(self, key: str) -> tuple[str, str]:
        """The tenant and the hash in a dedup key."""
        dedup_hash, _, tenant = key.removeprefix(f"{self.prefix}d:").partition(":")
        return tenant or DEFAULT_TENANT, dedup_hash


_LUA_KEY = re.compile(r"\b(?P<name>[a-z]+)_key\b(?:\((?P<ident>[^(),]+)\))?")

_LEVEL_KEY = (
    "local function level_key(lane, p) return prefix .. 'w:' .. string.char(48 + p) .. ':' .. lane end\n"
)
_DEDUP_KEY = (
    "local function dedup_key(tenant, hash) return prefix .. 'd:' .. hash"
    f" .. ((tenant or '{DEFAULT_TENANT}') == '{DEFAULT_TENANT}' and '' or ':' .. tenant) end\n"
)


def lua_keys(source: str, db: int = 0) -> str:
    """The same spelling for a script: `source` with its keys spelled out.

    `KEYS[1]` is the queue's prefix. `meta_key` is a fixed key, `record_key(id)` one of many. They are spelled
    out where they stand: in every call Lua makes each function of a script anew, and links it to each outer
    name that it uses. A script cannot ask for the number of its database, so its text has it.

    Raises:
        ValueError: a key that takes an id has none, or the other way round.
    """
    suffixes = _suffixes(db)

    def spelled(match: re.Match[str]) -> str:
        suffix, ident = suffixes.get(match["name"]), match["ident"]
        if suffix is None:
            return match.group()
        if suffix.endswith(":") != bool(ident):
            raise ValueError(
                f"{match.group()}: give a job's key its id, as `record_key(id)`, and a fixed one none"
            )
        return f"(prefix .. '{suffix}' .. {ident})" if ident else f"(prefix .. '{suffix}')"

    head = "local prefix = KEYS[1]\n"
    head += _LEVEL_KEY if "level_key(" in source else ""
    head += _DEDUP_KEY if "dedup_key(" in source else ""
    return head + _LUA_KEY.sub(spelled, source)
